#!/bin/bash
trap 'kill -TERM $p; wait $p' TERM
gunicorn app:app &
p=$!
while true; do sleep 30; done
