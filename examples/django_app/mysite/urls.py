"""Which view answers which path."""

from django.urls import path

from mysite import views

urlpatterns = [
    path("", views.index),
    path("slow", views.slow),
    path("stream", views.stream),
    path("upload", views.upload),
]
