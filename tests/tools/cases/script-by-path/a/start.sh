exec gunicorn a:app
