FROM python:3.12-slim
CMD ["gunicorn", "-k", "gracefulworker.sync", "shop:app"]
