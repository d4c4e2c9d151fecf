gunicorn -k gracefulworker.sync a:a
