FROM python:3.13
CMD ["gunicorn", "--workers=5", "threads", "10", "--timeout", "0", "app:app"]
