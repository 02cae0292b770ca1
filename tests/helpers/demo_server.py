"""The demo's page of a model, served on this machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from modeling_salmonn import AudioTextPipeline
from modeling_salmonn.serving.clip_chat import ClipChat
from modeling_salmonn.serving.demo import DemoPage, launch_demo, own_uploads


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def served_demo(pipe: AudioTextPipeline, name: str, max_new_tokens: int) -> Iterator[str]:
    """The URL of a page with the limits that the command has if it is not told others."""
    with own_uploads():
        page = DemoPage(ClipChat(pipe, max_seconds=60, max_bytes=20 * 2**20, max_new_tokens=max_new_tokens), name)
        try:
            yield launch_demo(page, "127.0.0.1", free_port())
        finally:
            page.blocks.close(verbose=False)
