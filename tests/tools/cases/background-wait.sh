#!/bin/sh
gunicorn app:app &
wait
