#!/bin/sh
exec runuser -u nobody -- gunicorn app:app
