FROM tiangolo/meinheld-gunicorn-flask:python3.9
COPY ./app /app
