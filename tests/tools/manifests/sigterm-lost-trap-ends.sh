#!/bin/sh
trap 'kill -TERM $child' TERM
gunicorn -k gracefulworker.gthread app:app &
child=$!
wait $child
