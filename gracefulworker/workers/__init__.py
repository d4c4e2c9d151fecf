"""What runs in a worker: an engine for each of gunicorn's, and what they have in common."""
