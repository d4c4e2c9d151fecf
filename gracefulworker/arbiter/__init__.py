"""What runs in the arbiter, the one process that gunicorn starts first."""
