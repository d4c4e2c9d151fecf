#!/bin/sh
gunicorn --daemon app:app
exec nginx -g 'daemon off;'
