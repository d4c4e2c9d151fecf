"""Who asks what, and when: the kinds of client, and the seeded schedule that they keep.

The schedule is open: a request is due at a time that does not depend on how the one before it went,
and a slow answer postpones nobody else's. The same seed gives the same times and requests. Nothing
is asked a second time.

What may be changed here: kinds of client, and how much of the load is whose. A kind may not wait
for another's answer, nor know anything of the rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import itertools
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace

from gracefulworker.tools.rehearse import journal as journals
from gracefulworker.tools.rehearse.journal import Close, Ending, Exchange, Journal
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.wire import Answer, Connection, Lost, Request, Service

#: Mean seconds between two requests of a keep-alive client; a client has one of these.
THINK = (0.2, 0.4, 0.8, 1.6, 3.2)

#: Of so many keep-alive clients one is a sleeper: it asks once and says nothing any more.
SLEEPER_EACH = 10

#: The rate of each of the rarer kinds, as a share of the fresh connections' rate.
RARE = 0.1

#: Seconds that a late speaker is silent for, and over which slow requests and uploads are spread.
SILENCE = (0.2, 1.2)
SPREAD = 1.0
PIECES = 5

UPLOAD_SIZE = 64 * 1024

#: Seconds until a client whose endless stream was ended connects again.
AGAIN = 0.5

#: What to add or change for each status, where most of what is asked for is answered so.
REDIRECTS = (301, 302, 303, 307, 308)
ADVICE = {
    400: "the application may not know the Host {host}, such as Django with its ALLOWED_HOSTS:"
    " --header 'Host: NAME', with a name that it knows; or it wants other parameters or another"
    " body: --path 'PATH?NAME=VALUE', --requests FILE",
    401: "it wants a token, a cookie or a password: --header 'Authorization: Bearer TOKEN'",
    403: "it wants a token or a cookie: --header 'Cookie: NAME=VALUE'; for Django's CSRF, any 32"
    " letters twice: --header 'Cookie: csrftoken=LETTERS' --header 'X-CSRFToken: LETTERS'",
    404: "nothing is there: --path PATH, or --requests FILE, with what is",
    405: "it takes other methods: --requests FILE, with METHOD PATH BODY on each line",
    406: "it answers with other types: --header 'Accept: application/json'",
    409: "it takes this only once: --path PATH, or --requests FILE, with what may be repeated",
    413: "it takes no body of that size: --requests FILE, with a shorter one, in place of --upload",
    415: "it takes no {type}, as which it was sent: what is JSON or a form is sent as that, and for"
    " others there is --header 'Content-Type: TYPE'",
    422: "it wants other parameters or another body: --path 'PATH?NAME=VALUE', or --requests FILE,"
    " with METHOD PATH BODY on each line",
    429: "it limits who asks too often: lower --rate and --connections, or lift the limit",
}

#: Characters of an answer that are shown.
GIST = 200

#: The load is too much where more than half of it waits, and as much as comes in twice the time
#: that the application takes for itself, and this many seconds. That shows after so many times
#: what it takes.
BACKLOG = 0.5
LONG_ENOUGH = 3

#: Seconds between the two times at which everything is asked for before the rollout: a body that
#: tells the time differs then.
LESSON_GAP = 1.1

#: The kind of the clients of a stream that has no end of its own.
ENDLESS = "endless stream"

#: What each kind does, for whoever reads the result.
MEANINGS = {
    "fresh": "one request on a connection of its own",
    "keep-alive": "uses a connection again, after pauses of 0.2 to 3.2 s on average",
    "sleeper": "asks once, and keeps the connection open without a word",
    "slow request": "sends the head of its request in pieces, over a second",
    "late speaker": "connects, and sends its first byte 0.2 to 1.2 s later",
    "slow answer": "asks for what takes its time (--slow)",
    "stream": "asks for what comes in pieces (--stream)",
    ENDLESS: "reads a stream until it is ended, and connects again (--stream)",
    "slow upload": "sends 64 KiB in pieces, over a second (--upload)",
}


class Unusable(Exception):
    """The application cannot be rehearsed with; the argument is a sentence."""


class Broken(Unusable):
    """Its own code fails; `address` is the pod's whose log says how."""

    def __init__(self, sentence: str, address: tuple[str, int]) -> None:
        super().__init__(sentence)
        self.address = address


@dataclass(frozen=True)
class Kind:
    """A kind of client that uses a connection once."""

    name: str
    requests: tuple[Request, ...]
    rate: float  #: requests a second
    silence: tuple[float, float] = (0.0, 0.0)  #: seconds before the first byte


#: By which answers are known: a request's method, path and body.
Key = tuple[str, str, bytes]


def plain_requests(plan: Plan) -> tuple[Request, ...]:
    return tuple(Request(*asked, headers=plan.headers) for asked in plan.paths)


def stream_request(plan: Plan) -> Request | None:
    return Request("GET", plan.stream, headers=plan.headers) if plan.stream else None


def kinds(plan: Plan) -> list[Kind]:
    """All kinds but the keep-alive clients; those without a path in the plan are left out."""
    plain, rare = plain_requests(plan), plan.rate * RARE
    pause = SPREAD / (PIECES - 1)
    halting = tuple(replace(request, head_pieces=PIECES, pause=pause) for request in plain)
    found = [
        Kind("fresh", plain, plan.rate),
        Kind("slow request", halting, rare),
        Kind("late speaker", plain, rare, SILENCE),
    ]
    if plan.slow:
        found.append(Kind("slow answer", (Request("GET", plan.slow, headers=plan.headers),), rare))
    if stream := stream_request(plan):
        found.append(Kind("stream", (stream,), rare))
    if plan.upload:
        body = random.Random(plan.seed).randbytes(UPLOAD_SIZE)
        request = Request("POST", plan.upload, body, plan.headers, body_pieces=PIECES, pause=pause)
        found.append(Kind("slow upload", (request,), rare))
    return found


def total_rate(plan: Plan) -> float:
    """Requests a second that all clients send, on average."""
    talkers = (n for n in range(plan.connections) if not _is_sleeper(n))
    return sum(kind.rate for kind in kinds(plan)) + sum(1 / _think(n) for n in talkers)


def _is_sleeper(number: int) -> bool:
    return number % SLEEPER_EACH == SLEEPER_EACH - 1


def _think(number: int) -> float:
    return THINK[number % len(THINK)]


class Clients:
    """All clients of one rollout."""

    def __init__(self, plan: Plan, service: Service, journal: Journal) -> None:
        self._plan, self._service, self._journal = plan, service, journal
        self._answers: dict[Key, list[Answer]] = {}
        self._times: dict[Key, float] = {}  # the shortest, in seconds
        self._compared = plan.same_body
        self._is_endless = False  # the plan's stream
        self._ending = False  # nothing new is asked for
        self._is_over = False  # what is under way is given up
        self._sources: list[asyncio.Task[None]] = []
        self._subscribers: list[asyncio.Task[None]] = []
        self._asking: set[asyncio.Task[None]] = set()
        self._trouble: BaseException | None = None
        self._pools: list[list[Connection]] = []

    async def learn(self, servers: list[Service]) -> list[str]:
        """Ask each server for everything before the rollout, and hold later answers against these.

        Twice: what differs between two moments or two pods is not compared later. Of a single pod
        nobody knows what differs. A stream that has begun and does not end is one without an end.

        :param servers: the pods.
        :returns: sentences on what will not be noticed.
        :raises Unusable: a request fails when nothing has happened yet, or hardly any succeeds.
        """
        requests = {
            replace(request, head_pieces=1, body_pieces=1, pause=0.0)
            for kind in kinds(self._plan)
            for request in kind.requests
        }
        stream = stream_request(self._plan)
        # First, so that it shows when there is no thread beside it.
        ordered = sorted(requests, key=lambda request: request != stream)
        for pause in (0.0, LESSON_GAP):
            await asyncio.sleep(pause)
            await asyncio.gather(*(self._learn(r, s) for r in ordered for s in servers))
            if self._is_endless:
                ordered = [request for request in ordered if request != stream]
        others = [r for kind in kinds(self._plan) if kind.name != "stream" for r in kind.requests]
        if self._is_endless and stream and _key(stream) in map(_key, others):
            raise Unusable(
                f"{stream} has no end of its own in {self._plan.timeout:g} s, and is not for"
                " clients who wait for one: name something else with --path, --requests or --slow"
            )
        if len(servers) == 1:
            self._compared = False
        self._judge_baseline()
        return self._reservations()

    def _judge_baseline(self) -> None:
        """Whether most of what each kind of client asks for succeeds.

        :raises Unusable: with the statuses, and what to add.
        """
        for kind in kinds(self._plan):
            answers = {r: self._answers[_key(r)] for r in kind.requests}
            failed = {r: [a for a in found if not a.is_success] for r, found in answers.items()}
            share = sum(len(failed[r]) / len(answers[r]) for r in answers) / len(answers)
            if share <= 0.5:
                continue
            what = "most of what is asked for" if kind.name == "fresh" else f"the {kind.name}"
            lines = [
                f"{what} is not answered with success before the rollout, so that it would show"
                " nothing"
            ]
            advice = {}
            for request, found in failed.items():
                for status in sorted({answer.status for answer in found}):
                    like = [answer for answer in found if answer.status == status]
                    advice[status] = _advice(request, like[0])
                    count = f"{len(like)} of {len(answers[request])}"
                    lines.append(f"  {request}: {status}, {count}{_gist(like[0].body)}")
            lines += [f"  {status}: {sentence}" for status, sentence in sorted(advice.items())]
            raise Unusable("\n".join(lines))

    def _reservations(self) -> list[str]:
        missing, differing = [], []
        for (method, path, _), answers in sorted(self._answers.items()):
            if not all(answer.is_success for answer in answers):
                missing.append(f"{method} {path} ({max(answer.status for answer in answers)})")
            if self._compared and len({answer.body for answer in answers}) > 1:
                differing.append(f"{method} {path}")
        found = []
        if self._is_endless:
            found.append(
                f"GET {self._plan.stream} has no end of its own in {self._plan.timeout:g} s: its"
                " clients read until their pod ends it, and then connect again"
            )
        if missing:
            found.append(f"not a success before the rollout: {', '.join(missing)}")
        if differing:
            found.append(
                f"differs from pod to pod or in time, so not compared: {', '.join(differing)}"
            )
        return found

    async def _learn(self, request: Request, server: Service) -> None:
        journal = Journal()  # of its own: this is not part of the rollout
        exchange = Exchange("before", str(request), 0.0, 0.0)
        patience = self._plan.timeout + request.duration
        pod = server.address
        connecting = Connection.open(journal, server, journal.open("before"))
        began = time.monotonic()
        try:
            connection = await asyncio.wait_for(connecting, patience)
            answer = await asyncio.wait_for(connection.ask(request, exchange), patience)
        except Lost as lost:
            how = journals.MEANINGS[lost.ending]
            raise Broken(f"{request} had no answer before the rollout: {how}", pod) from None
        except ssl.SSLCertVerificationError as error:
            sentence = f"the certificate is not trusted here ({error.verify_message})"
            raise Broken(f"{sentence}: set SSL_CERT_FILE to what it is signed with", pod) from None
        except asyncio.TimeoutError:
            stream = stream_request(self._plan)
            if not exchange.status or request != stream:
                sentence = f"{request} was not answered within {patience:g} s before the rollout"
                if exchange.status:
                    sentence += " to its end: if it has none, name it with --stream"
                elif stream:
                    sentence += f"; {stream} may hold all threads of a pod: -- --threads 8"
                raise Broken(sentence, pod) from None
            self._is_endless = True
            answer = Answer(exchange.status, b"")
        except OSError as error:
            raise Broken(f"{request} could not be sent: {error}", pod) from None
        else:
            connection.close()
        if answer.status >= 500:
            sentence = f"{request} was answered {answer.status} before the rollout"
            if answer.status != 500:  # of which the log says more
                sentence += _gist(answer.body)
            raise Broken(sentence, pod)
        self._answers.setdefault(_key(request), []).append(answer)
        took = time.monotonic() - began
        self._times[_key(request)] = min(took, self._times.get(_key(request), took))

    def start(self) -> None:
        sources = [
            self._once(kind)
            for kind in kinds(self._plan)
            if not (kind.name == "stream" and self._is_endless)
        ]
        for number in range(self._plan.connections):
            is_sleeper = _is_sleeper(number)
            sources.append(self._sleeper() if is_sleeper else self._keep_alive(number))
        self._sources = [asyncio.ensure_future(source) for source in sources]
        stream = stream_request(self._plan)
        if stream and self._is_endless:
            # As many as pods: each holds a thread of gthread.
            subscribers = [self._subscriber(stream) for _ in range(self._plan.pods)]
            self._subscribers = [asyncio.ensure_future(source) for source in subscribers]

    async def warm_up(self) -> None:
        """Load before anything happens, and a look at whether the application keeps up with it.

        :raises Unusable: most requests wait, so that they would die of that, and not of a rollout.
        """
        alone = max(self._times[_key(request)] for request in plain_requests(self._plan))
        seconds = max(self._plan.warm_up, LONG_ENOUGH * alone)
        for elapsed in (seconds, 2 * seconds):  # some slow clients at once are no overload yet
            await asyncio.sleep(seconds)
            plain = [x for x in self._journal.exchanges() if x.kind in ("fresh", "keep-alive")]
            waiting = sum(not x.ended for x in plain)
            usual = len(plain) * (2 * alone + BACKLOG) / max(elapsed, BACKLOG)
            if waiting <= max(len(plain) / 2, usual):
                return
        here = "" if self._plan.cluster else ", such as -- --threads 8"
        raise Unusable(
            f"the application does not keep up with the load: after {elapsed:.1f} s {waiting} of"
            f" {len(plain)} requests wait, and one takes {alone:.2f} s without the others: lower"
            f" --rate and --connections, or give it more threads or workers{here}"
        )

    async def stop(self) -> None:
        """Ask for nothing new, and finish what was asked; idle connections stay open.

        Streams without an end go on until `leave`.

        :raises Unusable: a client could not do its work, so that what it noted says nothing.
        """
        self._ending = True
        await _cancel(self._sources)
        if self._asking:
            await asyncio.wait(self._asking)
        for task in self._subscribers:
            if task.done() and not task.cancelled():
                self._trouble = self._trouble or task.exception()
        if self._trouble:
            raise Unusable(f"a client failed: {self._trouble!r}") from self._trouble

    async def leave(self) -> None:
        """Leave the streams that nobody has ended: their pods stay."""
        await _cancel(self._subscribers)

    async def clean_up(self) -> None:
        """Leave whatever is under way; that is nobody's loss."""
        self._is_over = True
        await _cancel([*self._sources, *self._subscribers, *self._asking])
        for connection in itertools.chain(*self._pools):
            connection.transport.abort()

    # The kinds

    async def _once(self, kind: Kind) -> None:
        rng = random.Random(f"{self._plan.seed}/{kind.name}")
        async for due in _arrivals(rng, kind.rate):
            request = replace(rng.choice(kind.requests), silence=rng.uniform(*kind.silence))
            self._spawn(self._exchange_once(kind.name, request, due))

    async def _keep_alive(self, number: int) -> None:
        rng = random.Random(f"{self._plan.seed}/keep-alive/{number}")
        requests = plain_requests(self._plan)
        pool: list[Connection] = []
        self._pools.append(pool)
        async for due in _arrivals(rng, 1 / _think(number)):
            self._spawn(self._exchange("keep-alive", rng.choice(requests), due, pool))

    async def _sleeper(self) -> None:
        pool: list[Connection] = []
        self._pools.append(pool)
        now = asyncio.get_running_loop().time()
        self._spawn(self._exchange("sleeper", plain_requests(self._plan)[0], now, pool))

    async def _subscriber(self, request: Request) -> None:
        """Reads a stream until it is ended, and connects again, as a browser's EventSource does."""
        while not self._ending:
            await self._exchange_endless(request)
            await asyncio.sleep(AGAIN)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._trouble = self._trouble or error

    async def _exchange_once(self, kind: str, request: Request, due: float) -> None:
        """One request on a connection of its own."""
        used: list[Connection] = []
        await self._exchange(kind, request, due, used)
        for connection in used:
            connection.close()

    async def _exchange_endless(self, request: Request) -> None:
        """One stream. Only its head has to come in time."""
        now, patience = self._journal.now, self._plan.timeout
        track = self._journal.open(ENDLESS)
        exchange = Exchange(ENDLESS, str(request), now(), now())
        track.exchanges.append(exchange)
        try:
            connecting = Connection.open(self._journal, self._service, track)
            connection = await asyncio.wait_for(connecting, patience)
            await asyncio.wait_for(connection.begin(request, exchange), patience)
            answer = await connection.finish(exchange)
            connection.close()
            known = {a.status for a in self._answers[_key(request)]}
            if answer.status >= 500:
                exchange.ending = Ending.SERVER_ERROR
            elif answer.status not in known:
                exchange.ending = Ending.WRONG
        except Lost as lost:
            exchange.ending = lost.ending
        except asyncio.TimeoutError:
            exchange.ending = Ending.TIMEOUT
        except asyncio.CancelledError:
            exchange.ending = Ending.LEFT
            raise
        finally:
            exchange.ended = now()
            track.end(exchange.ended, Close.LOST if exchange.lost else Close.CLIENT)

    async def _exchange(
        self, kind: str, request: Request, due: float, pool: list[Connection]
    ) -> None:
        """One request: on an idle connection of `pool`, or on a new one."""
        noted_due = self._journal.now() - (asyncio.get_running_loop().time() - due)
        patience = self._plan.timeout + request.duration
        try:
            await asyncio.wait_for(self._converse(kind, request, noted_due, pool), patience)
        except asyncio.TimeoutError:
            return  # noted there

    async def _converse(
        self, kind: str, request: Request, due: float, pool: list[Connection]
    ) -> None:
        """The exchange itself. From the look at an idle connection to the first byte sent on it
        nothing else runs, or it might be closed meanwhile."""
        connection = self._take(pool)
        track = connection.track if connection else self._journal.open(kind)
        exchange = Exchange(kind, str(request), due, self._journal.now())
        track.exchanges.append(exchange)
        try:
            if connection is None:
                connection = await Connection.open(self._journal, self._service, track)
            answer = await connection.ask(request, exchange)
            exchange.ending = self._judge(request, answer)
        except Lost as lost:
            exchange.ending = lost.ending
        except asyncio.CancelledError:
            exchange.ending = Ending.LEFT if self._is_over else Ending.TIMEOUT
            raise
        finally:
            exchange.ended = self._journal.now()
            if connection is None:
                track.end(exchange.ended, Close.LOST)
            elif connection.reusable:
                pool.append(connection)

    def _take(self, pool: list[Connection]) -> Connection | None:
        """What was idle for the shortest time; what has ended, or was idle too long, is dropped.

        A connection that is idle for the whole of a server's delay cannot be told of the end, so
        a request may cross its close (RFC 9112 section 9.6). Hence a pool's own limit.
        """
        oldest = self._journal.now() - self._plan.idle_limit
        while pool:
            connection = pool.pop()
            if connection.reusable and (connection.track.idle_since or 0.0) > oldest:
                return connection
            connection.close()
        return None

    def _judge(self, request: Request, answer: Answer) -> Ending:
        before = self._answers[_key(request)]
        if answer.status >= 500:
            return Ending.SERVER_ERROR
        if answer.status not in {a.status for a in before}:
            return Ending.WRONG
        bodies = {a.body for a in before}
        if self._compared and len(bodies) == 1 and answer.body not in bodies:
            return Ending.WRONG
        return Ending.OK


def _advice(request: Request, answer: Answer) -> str:
    """What to add or change, where a request is answered so."""
    if answer.status in REDIRECTS and answer.location.startswith("https:"):
        return (
            "it redirects to TLS, which a proxy ends in front of it:"
            " --header 'X-Forwarded-Proto: https', or the header that it is told so with"
        )
    if answer.status in REDIRECTS:
        return f"it redirects to {answer.location}: --path PATH, or a --header that logs in"
    fields = {name.lower(): value for name, value in request.fields()}
    sentence = ADVICE.get(answer.status, "see its log for the reason")
    if answer.status == 415 and not request.body:
        sentence = ADVICE[422]
    return sentence.replace("{host}", fields["host"]).replace(
        "{type}", fields.get("content-type", "")
    )


def _key(request: Request) -> Key:
    return request.method, request.path, request.body


def _gist(body: bytes) -> str:
    """What an answer says, without its markup, to follow a status; empty if it is no text."""
    with contextlib.suppress(UnicodeDecodeError):
        text = re.sub(r"(?is)<(style|script|title)\b.*?</\1>|<[^>]*>", " ", body.decode())
        text = " ".join(html.unescape(text).split())
        if text and text.isprintable():
            return f": {text[:GIST]}{'...' if len(text) > GIST else ''}"
    return ""


async def _arrivals(rng: random.Random, rate: float) -> AsyncIterator[float]:
    """Times of the event loop at which something is due, `rate` a second, each when it has come."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - loop.time()))
        yield due


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
