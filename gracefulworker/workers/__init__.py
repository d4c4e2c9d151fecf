"""The three workers: the same shape, different engines."""
