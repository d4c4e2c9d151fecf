#!/bin/sh
python3 -c "print('gunicorn starts')"
exec gunicorn a:b
