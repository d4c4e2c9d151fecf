#!/bin/sh
gunicorn app:app
