#!/bin/sh
gunicorn app:app &
echo started
