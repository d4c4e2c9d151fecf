gunicorn -k gracefulworker.gthread --keep-alive 95 --graceful-timeout 60 app:app
