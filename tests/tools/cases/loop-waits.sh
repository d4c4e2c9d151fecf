#!/bin/bash
trap 'kill -TERM "$PID"; wait "$PID"; exit' TERM
gunicorn app:app &
PID=$!
while true; do sleep 1; done
