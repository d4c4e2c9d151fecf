"""Workers of a team's own, with uvicorn's settings in CONFIG_KWARGS."""

import gracefulworker


class H11(gracefulworker.uvicorn):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "h11", "ws": "wsproto"}  # noqa: RUF012


class HttpTools(gracefulworker.uvicorn):
    CONFIG_KWARGS = {"loop": "uvloop", "http": "httptools"}  # noqa: RUF012


class Asyncio(gracefulworker.uvicorn):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "httptools", "ws": "websockets"}  # noqa: RUF012


class Zttp(gracefulworker.uvicorn):
    CONFIG_KWARGS = {"loop": "auto", "http": "zttp"}  # noqa: RUF012


class Http2(gracefulworker.uvicorn):
    CONFIG_KWARGS = {"loop": "auto", "http": "zttp", "http2": True}  # noqa: RUF012
