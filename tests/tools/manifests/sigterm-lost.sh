#!/bin/bash
set -euo pipefail
cat <<EOF
gunicorn isn't started here
EOF
python manage.py migrate
gunicorn -k gracefulworker.gthread \
    --workers "${WORKERS:-4}" app:app
