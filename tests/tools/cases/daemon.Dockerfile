FROM python:3.12
CMD gunicorn -D app:app && nginx -g "daemon off;"
