#!/bin/bash
gunicorn app:app &
p=$!
stop() { kill -TERM "$p"; wait "$p"; }
trap stop EXIT
trap 'exit 0' TERM
wait "$p"
