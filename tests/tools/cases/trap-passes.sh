#!/bin/bash
stop() {
  kill -TERM "$pid"
  wait "$pid"
}
trap stop TERM INT
gunicorn app:app &
pid=$!
wait "$pid"
