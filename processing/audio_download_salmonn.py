"""Downloading of audio: within a size and a time, and on demand from public addresses alone."""

import io
import ipaddress
import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from threading import Timer
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)


ANSWER_SECONDS = 30  # until the content starts, over all redirects; also the longest silence
DOWNLOAD_SECONDS = 300  # until its end
SLOWEST_BYTES_PER_SECOND = 1024  # on average, once the time for an answer is over
DOWNLOAD_BYTES = 2**28  # held in memory
CHUNK_BYTES = 2**16
URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"  # those that keep their meaning
SCHEMES = ("http", "https")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses that routers translate to IPv4 (RFC 6052)


def download(url: str, public_only: bool = False, max_bytes: int | None = None) -> bytes:
    """The content of an `http` or `https` URL.

    Args:
        url: may hold blanks and characters beyond ASCII.
        public_only: refuse addresses of this machine and of private networks, also behind names and redirects;
            what has been checked is what is connected to. Proxies are not used then.
        max_bytes: largest content; `None` for 256 MiB, which no other limit exceeds.

    Raises:
        ValueError: if it cannot be downloaded, naming the URL.
    """
    watch = _Watch(ANSWER_SECONDS)
    limit = DOWNLOAD_BYTES if max_bytes is None else min(max_bytes, DOWNLOAD_BYTES)
    try:
        request = Request(_ascii_url(url), headers={"User-Agent": "modeling-salmonn", "Accept-Encoding": "identity"})
        with _opener(watch, public_only).open(request, timeout=ANSWER_SECONDS) as response:
            watch.extend(DOWNLOAD_SECONDS)
            return _read(response, watch, limit)
    except (OSError, HTTPException, ValueError) as error:
        reason = f"no end after {watch.seconds:g} s" if watch.is_over else error
        raise ValueError(f"{url} cannot be downloaded: {reason}") from error
    finally:
        watch.close()


def is_public(address: str) -> bool:
    """Whether an IP address can be reached by everyone, and is no other way to write one that cannot."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    embedded = _embedded_address(parsed) if isinstance(parsed, ipaddress.IPv6Address) else None
    if embedded is not None:
        return is_public(str(embedded))
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


class _Watch:
    """Ends connections when the time is up: a server that sends a byte now and then never times out by itself."""

    def __init__(self, seconds: float):
        self.started = monotonic()
        self.is_over = False
        self._connections: list[socket.socket] = []
        self._start(seconds)

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return monotonic() - self.started

    def extend(self, seconds: float) -> None:
        """Give it this time from its start instead."""
        self._timer.cancel()
        self._start(seconds)

    def add(self, connection: socket.socket) -> None:
        """Watch a connection, under a handle of its own: TLS takes the given one over."""
        self._connections.append(connection.dup())
        if self.is_over:
            self._end()

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        for connection in self._connections:
            connection.close()

    def _start(self, seconds: float) -> None:
        self.seconds = seconds
        self._timer = Timer(max(0.0, seconds - self.elapsed), self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        for connection in list(self._connections):
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to the same schemes, without reading what comes along with them."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        scheme = urlsplit(newurl).scheme.lower()
        if scheme not in SCHEMES:
            raise ValueError(f"it redirects to {scheme}:, which is not allowed")
        fp.close()  # what comes along may have no end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(watch: _Watch, public_only: bool) -> OpenerDirector:
    """Opens URLs by connections that are watched and, on demand, go to public addresses alone."""

    def connect(address: tuple[str, int], *options: Any) -> socket.socket:
        open_connection = _connect_publicly if public_only else socket.create_connection
        connection = open_connection(address, *options)
        watch.add(connection)
        return connection

    def watched(connection: Any) -> Any:
        connection._create_connection = connect  # the one place that both kinds connect by, at every hop
        return connection

    class PlainHandler(HTTPHandler):
        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(lambda *args, **kwargs: watched(HTTPConnection(*args, **kwargs)), request)

    class SecureHandler(HTTPSHandler):
        def https_open(self, request: Request) -> HTTPResponse:
            return self.do_open(lambda *args, **kwargs: watched(HTTPSConnection(*args, **kwargs)), request)

    direct = [ProxyHandler({})] if public_only else []  # what a proxy connects to cannot be checked
    return build_opener(PlainHandler, SecureHandler, _Redirects, *direct)


def _read(response: HTTPResponse, watch: _Watch, limit: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", ""):
        raise ValueError(f"the server sends it compressed ({encoding}), which was not asked for")
    stated = response.headers.get("Content-Length", "")
    expected = int(stated) if stated.isdecimal() else 0
    _check_size(expected, limit)
    content = io.BytesIO()  # whose value is not copied
    while chunk := response.read1(CHUNK_BYTES):
        content.write(chunk)
        size, elapsed = content.tell(), watch.elapsed
        _check_size(size, limit)
        if elapsed > ANSWER_SECONDS and size < SLOWEST_BYTES_PER_SECOND * elapsed:
            raise ValueError(f"the server sent {size} bytes in {elapsed:.0f} s, which is too slow")
    # A connection that is shut down looks like one that has ended.
    if watch.is_over or content.tell() < expected:
        raise ValueError(f"the connection ended after {content.tell()} of {expected} bytes")
    return content.getvalue()


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(
            f"it has more than {limit} bytes; cut or compress it, or download it yourself and pass the file"
        )


def _ascii_url(url: str) -> str:
    """The URL as it is sent: blanks and characters beyond ASCII are encoded, in the host's name by IDNA."""
    url = url.strip(" ")
    if not url.isprintable():
        raise ValueError("it has control characters")
    parts = urlsplit(url)
    if parts.scheme.lower() not in SCHEMES or not parts.hostname:
        raise ValueError("it needs http:// or https:// and the name of a host")
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path, query = quote(parts.path, safe=URL_CHARACTERS), quote(parts.query, safe=URL_CHARACTERS)
    return urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _connect_publicly(address: tuple[str, int], *options: Any) -> socket.socket:
    """Connect to an address that has been checked, so that no second look at the host's name can give another."""
    host, port = address
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for number in found:
        if not is_public(number):
            raise ValueError(f"{host} is at {number}, which is no public address, and local ones are not allowed")
    *others, last = dict.fromkeys(found)
    for number in others:
        with suppress(OSError):
            return socket.create_connection((number, port), *options)
    return socket.create_connection((last, port), *options)


def _embedded_address(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if address in NAT64 or int(address) < 2**32:  # the latter were once a way to write them (RFC 4291, 2.5.5.1)
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
