#!/bin/sh
mkdir -p /run/gunicorn
if command -v gunicorn >/dev/null; then exec gunicorn a:a; fi
