"""Text piece by piece from a thread that generates it, and that ends when nobody reads any more."""

import atexit
from collections.abc import Callable, Iterator
from contextvars import copy_context
from threading import Event, Thread, current_thread
from typing import Any

import torch
from transformers import TextIteratorStreamer


def stream_text(tokenizer: Any, generate: Callable[[TextIteratorStreamer], Any]) -> Iterator[str]:
    """Run a generation in a thread and yield its text as it comes.

    The thread sees the context variables of this call. It ends within a step when the iterator is closed, collected or
    left by an exception, and when the interpreter exits.

    Args:
        tokenizer: decodes the answer.
        generate: hands the streamer that it gets to `model.generate`.

    Returns:
        Iterator over the pieces of the answer, without prompt and special tokens. What `generate` raises is raised
        there.
    """
    streamer = _StoppableStreamer(tokenizer)
    context = copy_context()
    return _read_pieces(streamer, lambda: context.run(generate, streamer))


class _StreamStopped(Exception):
    """Leaves `generate` of a stream that nobody reads any more."""


class _StoppableStreamer(TextIteratorStreamer):
    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopped = Event()

    def put(self, value: torch.Tensor) -> None:
        """Called once per step, and before the first: the place to stop that every way of decoding passes."""
        if self.stopped.is_set():
            raise _StreamStopped
        super().put(value)


def _read_pieces(streamer: _StoppableStreamer, generate: Callable[[], Any]) -> Iterator[str]:
    failure: list[BaseException] = []

    def work() -> None:
        try:
            generate()
        except _StreamStopped:
            pass
        except BaseException as error:  # raised again in the reader's thread
            failure.append(error)
        finally:
            streamer.end()  # the reader waits for it, also where nothing was generated

    def stop() -> None:
        streamer.stopped.set()
        if thread.is_alive() and thread is not current_thread():  # garbage is collected in any thread
            thread.join()

    # A daemon, since the interpreter waits for other threads before it calls what is registered for its exit.
    thread = Thread(target=work, daemon=True)
    try:
        atexit.register(stop)
        thread.start()
        for piece in streamer:
            if piece:
                yield piece
    finally:
        stop()
        atexit.unregister(stop)
    if failure:
        raise failure[0]
