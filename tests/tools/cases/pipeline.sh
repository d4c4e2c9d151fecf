#!/bin/sh
exec gunicorn app:app | tee /log
