"""The commands beside the service: nothing that serves imports them."""
