FROM python:3.13
COPY run.sh /run.sh
CMD ["sh", "-c", "./manage.py migrate; /run.sh"]
