#!/usr/bin/with-contenv bash
exec s6-setuidgid abc gunicorn app:app
