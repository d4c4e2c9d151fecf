#!/bin/bash
set -euo pipefail
start_web() {
  exec gunicorn --workers "${WEB_WORKERS:-4}" "$@"
}
main() {
  if [[ "${DEBUG:-}" == "1" ]]; then
    exec python manage.py runserver
  fi
  start_web "${1:-app:app}"
}
main "$@"
