"""Embeds gunicorn, with an Arbiter of its own: ``python own_arbiter.py WORKER``."""

import sys

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter


class OwnArbiter(Arbiter):
    def handle_term(self):
        self.log.info("own handle_term")
        super().handle_term()


class Embedding(BaseApplication):
    def load_config(self):
        self.cfg.set("bind", "127.0.0.1:0")
        self.cfg.set("worker_class", sys.argv[1])
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", True)

    def load(self):
        return lambda environ, start_response: start_response("200 OK", []) and []

    def run(self):
        OwnArbiter(self).run()


if __name__ == "__main__":
    Embedding().run()
