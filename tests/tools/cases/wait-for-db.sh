#!/bin/bash
wait_for_db() {
  for i in 1 2 3; do
    if pg_isready; then return 0; fi
    sleep 1
  done
  exit 1
}
wait_for_db
exec gunicorn app:app
