"""Tokenizing by one thread at a time: fast tokenizers hold padding and truncation as settings that threads share."""

import os
from threading import Lock
from typing import Any


# Of the module and not of a processor, which is copied and pickled; tokenizing takes little of a call's time.
TOKENIZING = Lock()

if hasattr(os, "register_at_fork"):  # a process that is forked while another thread tokenizes would wait for ever
    os.register_at_fork(
        before=TOKENIZING.acquire, after_in_parent=TOKENIZING.release, after_in_child=TOKENIZING.release
    )


def puts_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer that has a BOS puts it in front of every text."""
    with TOKENIZING:
        ids = tokenizer("a")["input_ids"]
    return ids[0] == tokenizer.bos_token_id
