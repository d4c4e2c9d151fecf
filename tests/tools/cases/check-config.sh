#!/bin/sh
gunicorn --check-config app:app && exec gunicorn app:app
