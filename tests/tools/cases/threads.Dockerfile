FROM python:3.13
CMD ["gunicorn", "-k", "gevent", "--threads", "4", "a:b"]
