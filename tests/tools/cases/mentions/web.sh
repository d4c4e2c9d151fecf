#!/bin/sh
systemctl start x_gunicorn.service
pip install gunicorn
