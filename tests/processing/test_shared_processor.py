"""One processor for many threads: no call fails, or gives anything else, because of the others."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from itertools import repeat
from threading import Barrier, Event
from typing import Any

import pytest
from prompting import assert_same_inputs

from modeling_salmonn import SalmonnProcessor


CALLS: list[dict[str, Any]] = [  # each wants other settings of the tokenizer
    {"text": ["One.", "A longer one."]},
    {"text": ["One.", "A longer one."], "padding": "max_length", "max_length": 40, "padding_side": "right"},
    {"text": ["One.", "A longer one."], "truncation": True, "max_length": 8},
    {"text": ["What?", "And which one?"], "audio_frames": [50, 300], "pad_to_multiple_of": 64},
    {"text": ["What?", "And which one?"], "audio_frames": [50, 300], "text_target": ["A dog.", "No."]},
]


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns after a microsecond, so that calls are interrupted everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
def test_threads_get_what_they_would_get_alone(bucket_processor: SalmonnProcessor) -> None:
    expected = [bucket_processor(**call) for call in CALLS]
    together = Barrier(len(CALLS))

    def call_often(index: int) -> None:
        together.wait()
        for _ in range(30):
            assert_same_inputs(bucket_processor(**CALLS[index]), expected[index])

    with ThreadPoolExecutor(len(CALLS)) as pool:
        list(pool.map(call_often, range(len(CALLS))))


@pytest.mark.usefixtures("frequent_switches")
def test_threads_with_like_calls_all_get_padded_rows(bucket_processor: SalmonnProcessor) -> None:
    expected, together = bucket_processor(**CALLS[0]), Barrier(8)

    def call_often(call: dict[str, Any]) -> None:
        together.wait()
        for _ in range(50):
            assert_same_inputs(bucket_processor(**call), expected)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call_often, repeat(CALLS[0], 8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_process_forked_beside_threads_can_tokenize(bucket_processor: SalmonnProcessor) -> None:
    is_over = Event()

    def call_on() -> None:
        while not is_over.is_set():
            bucket_processor(**CALLS[0])

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(call_on) for _ in range(2)]
        statuses = [wait_for_call_in_child(bucket_processor) for _ in range(20)]
        is_over.set()
    assert statuses == [0] * 20
    assert all(thread.exception() is None for thread in threads)


def wait_for_call_in_child(processor: SalmonnProcessor) -> int:
    """Status of a forked process that calls the processor; a signal ends it if that never returns."""
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        with suppress(Exception):
            processor(**CALLS[0])
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def test_processor_can_be_copied_and_pickled(bucket_processor: SalmonnProcessor) -> None:
    for copy in (deepcopy(bucket_processor), pickle.loads(pickle.dumps(bucket_processor))):
        for call in CALLS:
            assert_same_inputs(copy(**call), bucket_processor(**call))
