FROM python:3.13
CMD ["gunicorn", "-b 0.0.0.0:8000", "a:b", "-k gracefulworker.gthrd"]
