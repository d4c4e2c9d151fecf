FROM python:3.12-slim AS base
CMD ["gunicorn", "app:app"]
FROM base
ENTRYPOINT ["python", "-m", "jobs"]
