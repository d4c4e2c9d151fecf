"""Workers of a team's own, as ``-k subclasses.Name``: a subclass of each of ours."""

import os

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
