#!/bin/sh
trap 'kill -QUIT $PID; wait $PID' TERM
gunicorn app:app &
PID=$!
wait $PID
