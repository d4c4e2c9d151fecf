#!/bin/bash
if [[ "$1" = "api" || -z "$1" ]]; then exec gunicorn a:app; elif [[ "$1" = "rti" ]]; then gunicorn b:app; fi
