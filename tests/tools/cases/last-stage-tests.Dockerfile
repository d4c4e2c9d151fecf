FROM python:3.12-slim AS base
RUN pip install gunicorn
FROM base AS production
CMD gunicorn app:app
FROM base AS test
CMD ["pytest"]
