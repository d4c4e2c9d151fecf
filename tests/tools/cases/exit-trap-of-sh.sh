#!/bin/sh
gunicorn app:app &
p=$!
trap "kill -TERM $p; wait $p" EXIT
wait $p
