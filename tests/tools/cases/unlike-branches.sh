#!/bin/sh
if [ -z "$CONFIG" ]; then gunicorn a:b; rm -rf x; else exec gunicorn a:b; fi
