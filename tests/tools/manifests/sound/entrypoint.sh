#!/bin/sh
set -e
if [ "$1" = "worker" ]; then
    exec celery -A app worker
fi
pip install gunicorn && pkill -HUP gunicorn || true
exec "$@"
