FROM python:3.13
CMD ["gunicorn", "--bind", "0.0.0.0:$PORT", "app:app"]
