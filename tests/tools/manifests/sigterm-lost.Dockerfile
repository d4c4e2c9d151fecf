FROM python:3.13-slim AS build
CMD ["python", "-m", "build"]
FROM python:3.13-slim
RUN <<EOF
CMD gunicorn of no consequence
EOF
HEALTHCHECK CMD curl -f http://localhost:8000/
CMD gunicorn \
    -k gracefulworker.gthread \
    # a comment between
    app:app
