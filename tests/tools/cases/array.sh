#!/bin/bash
args=(--bind 0.0.0.0:8000)
if [ -n "$CERT" ]; then args+=(--certfile "$CERT"); fi
exec gunicorn "${args[@]}" app:app
