#!/bin/sh
exec ${WRAPPER:-} gunicorn ${EXTRA:+--reload} app:app
