FROM python:3.13-slim
STOPSIGNAL SIGQUIT
CMD ["gunicorn", "-k", "gracefulworker.gthread", "app:app"]
