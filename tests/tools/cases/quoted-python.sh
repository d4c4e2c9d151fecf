#!/bin/sh
exec $SU "$PY" /venv/bin/gunicorn app:app
