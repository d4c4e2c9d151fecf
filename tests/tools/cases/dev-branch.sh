#!/bin/sh
if [ "$ENV" = dev ]; then
  exec gunicorn --reload --no-such-option app:app
fi
exec gunicorn app:app
