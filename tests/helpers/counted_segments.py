"""Counts what encoders are run on, in models that are loaded on the way too."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_hook

from modeling_salmonn.modeling_beats import BeatsModel
from modeling_salmonn.modeling_salmonn import SalmonnSpeechEncoder


ENCODERS = {SalmonnSpeechEncoder: "speech", BeatsModel: "audio"}


@contextmanager
def counted_segments() -> Iterator[Counter[str]]:
    """How many segments each kind of encoder has encoded so far."""
    counts: Counter[str] = Counter()

    def count(module: Any, inputs: Any, output: Any) -> None:
        if type(module) in ENCODERS:
            counts[ENCODERS[type(module)]] += len(output.last_hidden_state)

    handle = register_module_forward_hook(count)
    try:
        yield counts
    finally:
        handle.remove()
