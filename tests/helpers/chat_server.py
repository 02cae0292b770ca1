"""A server of chat completions on this machine, which says what a test tells it to."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers each request with the next of its responses, the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses: list[tuple[int, str]] = []
        self.requests: list[tuple[str, dict[str, str], str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply(self, *contents: object) -> None:
        """Answer with completions of these contents."""
        bodies = [{"choices": [{"message": {"role": "assistant", "content": content}}]} for content in contents]
        self.responses = [(200, json.dumps(body)) for body in bodies]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        status, content = self.server.responses[0]
        del self.server.responses[: len(self.server.responses) > 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content.encode())))
        self.send_header("retry-after-ms", "1")  # tests do not wait
        if status in (302, 307):
            self.send_header("Location", content)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""
