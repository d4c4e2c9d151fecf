#!/bin/sh
(cd /app; exec gunicorn app:app)
