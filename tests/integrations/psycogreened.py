"""The worker of docs/platforms.md, "psycogreen"; ``-k psycogreened.Worker``."""

from psycogreen.gevent import patch_psycopg

import gracefulworker


class Worker(gracefulworker.gevent):
    def patch(self):
        super().patch()
        patch_psycopg()
