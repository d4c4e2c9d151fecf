"""Workers of a team's own, as ``-k subclasses.Name``: a subclass of each of ours."""

import os

import gevent.monkey
from gevent import pywsgi

import gracefulworker


class Sync(gracefulworker.sync):
    pass


class Gthread(gracefulworker.gthread):
    def handle_request(self, req, conn):
        os.write(2, b"subclass handles a request\n")
        return super().handle_request(req, conn)


class Gevent(gracefulworker.gevent):
    """Many gevent services patch a database driver there."""

    def patch(self):
        super().patch()
        os.write(2, b"subclass patches\n")


class GeventPatched(gracefulworker.gevent):
    """Leaves out what GeventWorker.patch does to the listeners."""

    def patch(self):
        gevent.monkey.patch_all()


class GeventPyWSGI(gracefulworker.gevent):
    """As gunicorn's own GeventPyWSGIWorker is made."""

    server_class = pywsgi.WSGIServer
    wsgi_handler = pywsgi.WSGIHandler


class GeventHandler(gracefulworker.gevent):
    """With the handler alone, which a server of ours would not ask."""

    wsgi_handler = pywsgi.WSGIHandler
