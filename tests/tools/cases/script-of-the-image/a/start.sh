#!/bin/sh
exec gunicorn a:app
