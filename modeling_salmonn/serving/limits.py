"""Limits of a server: how much a request may bring, and how many requests there may be at once."""

import asyncio
import json
from collections.abc import Callable
from typing import Any


BODY_SECONDS = 60  # in which a body has to arrive; a slow client would keep the place of others
RETRY_SECONDS = 5  # that a client is asked to wait, about as long as an answer takes


class RequestLimits:
    """ASGI middleware: refuses bodies that are too large, and requests beyond those that can wait.

    Args:
        app: the application to protect.
        max_body_bytes: largest body of a request.
        max_requests: requests that are answered or wait at once.
        unfinished_jobs: tells how many generations run or wait: one whose client has left is no request any more, but
            still takes its turn.
    """

    def __init__(self, app: Any, max_body_bytes: int, max_requests: int, unfinished_jobs: Callable[[], int]):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_requests = max_requests
        self.unfinished_jobs = unfinished_jobs
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 408, 413 or 503."""
        if scope["type"] != "http" or scope["method"] != "POST":  # health is told also under load
            await self.app(scope, receive, send)
            return
        if max(self.requests, self.unfinished_jobs()) >= self.max_requests:
            message = f"The server has {self.max_requests} requests to answer, as many as it takes; try again later."
            await _refuse(send, 503, message, [(b"retry-after", str(RETRY_SECONDS).encode())])
            return
        self.requests += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.requests -= 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await asyncio.wait_for(self._read_body(scope, receive), BODY_SECONDS)
        except asyncio.TimeoutError:  # not the builtin in Python 3.10
            await _refuse(send, 408, f"The request did not arrive within {BODY_SECONDS} s.")
            return
        if body is None:
            message = f"The request has more than {self.max_body_bytes} bytes; send a shorter clip, or compress it."
            await _refuse(send, 413, message)
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _read_body(self, scope: Any, receive: Any) -> bytes | None:
        """The whole body, `None` if it is too large.

        As much again as is allowed is taken from the client and dropped: one that is cut off while it sends sees its
        connection reset in place of the answer.
        """
        longest = 2 * self.max_body_bytes
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > longest:
            return None
        body = bytearray()
        size, more = 0, True
        while more and size <= longest:
            message = await receive()
            piece = message.get("body", b"")
            size += len(piece)
            if size <= self.max_body_bytes:
                body += piece
            more = message.get("more_body", False)  # not in the message of a client that left
        return bytes(body) if size <= self.max_body_bytes else None


def error_body(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body, and then what the client does further."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _refuse(send: Any, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    # the rest of the body may not have been read, so the connection cannot serve another request
    content = json.dumps(error_body(message, status)).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    fields += [(b"connection", b"close"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})
