"""A web server on this machine, with the faults of those that are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest


class AudioServer(ThreadingHTTPServer):
    """Serves one clip, well or badly, by the path that is asked for."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.requested: list[str] = []
        self.closing = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Each fault has a method of its name."""

    server: AudioServer

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        name = self.path.strip("/").split("/")[0].split("?")[0]
        try:
            getattr(self, f"send_{name}", self.send_clip)()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def send(self, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_clip(self) -> None:
        self.send(Content_Length=len(self.server.content))
        self.wfile.write(self.server.content)

    def send_huge(self) -> None:
        self.send(Content_Length=3 * 2**30)
        self.wfile.write(self.server.content)

    def send_endless(self) -> None:
        self.send()
        while not self.server.closing.is_set():
            self.wfile.write(bytes(2**16))

    def send_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send(Transfer_Encoding="chunked")
        while not self.server.closing.is_set():
            self.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")

    def send_short(self) -> None:
        self.send(Content_Length=len(self.server.content) + 1000)
        self.wfile.write(self.server.content)
        self.close_connection = True

    def send_gzip(self) -> None:
        self.send(Content_Encoding="gzip", Content_Length=len(self.server.content))
        self.wfile.write(self.server.content)

    def send_drip(self) -> None:
        self.send(Content_Length=10_000)
        while not self.server.closing.wait(0.01):
            self.wfile.write(b"R")

    def send_drippingheaders(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        while not self.server.closing.wait(0.01):
            self.wfile.write(b"X")

    def send_silence(self) -> None:
        self.server.closing.wait()

    def send_loop(self) -> None:
        self.send(302, Location=f"/loop/{len(self.server.requested)}")

    def send_to(self) -> None:
        """Redirect to what stands behind the `?`."""
        self.send(302, Location=self.path.partition("?")[2])

    def send_long(self) -> None:
        """A redirect with a body that has no end."""
        self.send(302, Location="/clip.wav")
        while not self.server.closing.is_set():
            self.wfile.write(bytes(2**16))


@contextmanager
def audio_server(content: bytes) -> Iterator[AudioServer]:
    """The server while it runs, reached without a proxy."""
    with AudioServer(content) as server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
