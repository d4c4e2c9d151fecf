#!/bin/sh
case "$1" in
  web) exec gunicorn app:app ;;
  worker) exec celery -A app worker ;;
  *) exec "$@" ;;
esac
