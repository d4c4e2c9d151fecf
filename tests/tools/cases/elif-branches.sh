#!/bin/sh
if [ -f a ]; then exec x/gunicorn a:b; elif [ -f b ]; then exec y/gunicorn a:b; else exec gunicorn a:b; fi
