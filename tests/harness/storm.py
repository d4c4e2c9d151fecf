"""Clients that never pause."""

from __future__ import annotations

import contextlib
import threading

from harness.clients import CEILING, Address, Client, Ending, now, why


class Storm:
    """Closed loops that ask without a pause, each request on a new connection.

    Each loop goes on until it has been turned away ``PATIENCE`` times, so that an answer after a
    refusal would be seen. Every second client says ``Connection: close`` itself, as simple clients
    do; the others leave the end to the server and read up to it when it is announced.
    """

    PATIENCE = 3

    def __init__(self, address: Address, clients: int, path: str = "/fast") -> None:
        self.address, self.path = address, path
        self.endings: list[list[Ending]] = [[] for _ in range(clients)]
        self._served = 0
        self._change = threading.Condition()
        self._halt = False
        self._threads = [
            threading.Thread(target=self._loop, args=(n,), daemon=True) for n in range(clients)
        ]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._halt = True
        for thread in self._threads:
            thread.join()

    def _loop(self, number: int) -> None:
        mine, own = self.endings[number], ("Connection: close",) if number % 2 else ()
        failed = 0
        while failed < self.PATIENCE and not self._halt:
            end = self._one(own)
            mine.append(end)
            if end.kind == "response":
                with self._change:
                    self._served += 1
                    self._change.notify_all()
            else:
                failed += 1

    def _one(self, own: tuple[str, ...]) -> Ending:
        began = now()
        try:
            client = Client(self.address)
        except OSError as error:
            return Ending(why(error), began, now())
        with contextlib.closing(client):
            end = client.ask(self.path, headers=own)
            if end.kind == "response" and end.closes:
                after = client.end()
                if after.kind != "eof" or after.body:
                    return Ending("after the response: " + after.kind, began, after.at)
        return end

    def wait_served(self, more: int) -> None:
        """Wait until this many further requests have been answered."""
        with self._change:
            goal = self._served + more
            if not self._change.wait_for(lambda: self._served >= goal, CEILING):
                raise AssertionError(f"the storm stands still: {self.census()}")

    def wait_over(self) -> None:
        """Wait until every loop has been turned away for good."""
        for thread in self._threads:
            thread.join(CEILING)
            assert not thread.is_alive(), "the storm goes on"

    def census(self) -> dict[str, int]:
        kinds = [end.kind for mine in self.endings for end in mine]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    @property
    def losses(self) -> list[Ending]:
        """Everything that is neither an answer nor a refusal."""
        return [e for mine in self.endings for e in mine if e.kind not in ("response", "refused")]

    @property
    def out_of_order(self) -> list[Ending]:
        """Answers that one client got after it had been turned away."""
        late = []
        for mine in self.endings:
            kinds = [end.kind for end in mine]
            if "refused" in kinds:
                late += [e for e in mine[kinds.index("refused") :] if e.kind == "response"]
        return late
