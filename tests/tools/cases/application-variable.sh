#!/bin/sh
exec gunicorn ${APP}.wsgi:application -k gracefulworker.sync
