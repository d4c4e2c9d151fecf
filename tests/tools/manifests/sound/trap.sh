#!/bin/sh
trap 'kill -TERM $child' TERM
gunicorn -k gracefulworker.gthread app:app &
child=$!
wait $child
# SIGTERM has ended the first one.
wait $child
