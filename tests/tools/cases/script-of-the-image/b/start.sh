#!/bin/sh
gunicorn b:app
