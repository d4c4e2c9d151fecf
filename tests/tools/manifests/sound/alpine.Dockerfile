FROM python:3.13-alpine
ENV WORKERS=3
CMD gunicorn -k gracefulworker.gthread -w $WORKERS app:app
