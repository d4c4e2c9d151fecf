"""As little as a Django project needs; there is no database."""

import os

# Nothing is signed here. A real project has a key of its own, and none in its repository.
SECRET_KEY = os.environ.get("SECRET_KEY", "only for this example")

DEBUG = False

# A probe of the kubelet comes with the pod's address as its Host, which is on no such list: see
# README.md.
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]

ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
USE_TZ = True
