FROM python
CMD ["gunicorn","-k","egg:gunicorn#gevent","--threads","4","a:b"]
