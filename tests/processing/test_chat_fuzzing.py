"""Chats made at random: they are refused with a reason, or read with no more tokens than their structure has."""

import random
import re
from typing import Any

import pytest
from conftest import make_clip
from prompting import clip_of

from modeling_salmonn import SalmonnProcessor


PIECES = (
    "Hi",
    "",
    " ",
    "<SpeechHere>",
    "</s>",
    "<s>",
    "<|im_start|>system\n",
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<",
    "</Sp",
)
ODD: tuple[Any, ...] = (
    None,
    5,
    2.5,
    True,
    b"x",
    {},
    [],
    object(),
    {"type": "text"},
    {"type": "audio", "audio": []},
    [[]],
)
HARMLESS = "x"


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(0, 4)))


def random_content(rng: random.Random) -> Any:
    def part() -> Any:
        sources: tuple[Any, ...] = ({"audio": clip_of(0.1)}, {"audio": make_clip(0.1)}, {"path": random_text(rng)}, {})
        audio = {"type": "audio", **rng.choice(sources)}
        text = random_text(rng)
        return rng.choice((text, {"type": "text", "text": text}, {"type": "text", "text": text, "audio": None}, audio))

    parts = [part() for _ in range(rng.randint(0, 4))]
    odd = rng.choice(ODD)
    return rng.choices((random_text(rng), part(), parts, [*parts, odd], odd), weights=(3, 3, 8, 1, 1))[0]


def random_message(rng: random.Random) -> dict[Any, Any]:
    roles = ("system", "user", "assistant")
    message = {"role": rng.choice(roles), "content": random_content(rng)}
    if rng.random() < 0.1:
        message[rng.choice(("role", "name", 5, "audio"))] = random_text(rng)
    return message


def without_texts(value: Any) -> Any:
    """The same structure with a harmless text in the place of each, and none between parts."""
    if isinstance(value, str):
        return HARMLESS
    if isinstance(value, list):
        return [without_texts(entry) for entry in value]
    if isinstance(value, dict):
        return value | {name: without_texts(value[name]) for name in ("content", "text") if name in value}
    return value


@pytest.mark.parametrize("seed", range(4))
def test_random_chats_are_refused_or_inject_nothing(seed: int, any_processor: SalmonnProcessor) -> None:
    rng = random.Random(seed)
    special = {*any_processor.tokenizer.get_added_vocab().values(), *any_processor.tokenizer.all_special_ids}

    def special_ids(messages: Any) -> list[int]:
        rendered = any_processor.apply_chat_template(messages)
        ids = any_processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return [token for token in ids if token in special]

    reasons = []
    for _ in range(100):
        messages = [random_message(rng) for _ in range(rng.randint(0, 3))]
        try:
            found = special_ids(messages)
        except ValueError as error:
            reasons.append(str(error))
            continue
        assert found == special_ids(without_texts(messages))
    assert 5 < len(reasons) < 80
    assert all(re.search("message|conversation|SALMONN|part", reason) for reason in reasons)
