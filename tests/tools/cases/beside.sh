#!/bin/sh
if [ -n "$REPLICA" ]; then exec litestream replicate -exec "gunicorn app:app"; fi
exec gunicorn app:app
