"""Messages and clips to ask with, and what the model reads of them, for the tests of prompts."""

from typing import Any

import torch
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import SalmonnProcessor


AUDIO = "<Speech><SpeechHere></Speech>"
OFFICIAL_PROMPT = f"<s>USER: {AUDIO} What?\nASSISTANT:"
BOS, EOS = 1, 2


def clip_of(seconds: float = 0.5, rate: int = SAMPLING_RATE, seed: int = 0) -> dict[str, Any]:
    """A clip with its rate, as `datasets` has them."""
    return {"array": make_clip(seconds, rate, seed), "sampling_rate": rate}


def user(*parts: Any) -> dict[str, Any]:
    """A message of text, where a string is given, and of audio."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "audio", "audio": p} for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat(processor: SalmonnProcessor, conversation: Any, **options: Any) -> dict[str, Any]:
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, **options)


def prompts_of(processor: SalmonnProcessor, inputs: Any) -> list[str]:
    """The prompts without padding, with each run of audio tokens as one placeholder."""
    texts = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[mask == 1]
        repeats = (ids[1:] == processor.audio_token_id) & (ids[:-1] == processor.audio_token_id)
        texts.append(processor.tokenizer.decode(torch.cat([ids[:1], ids[1:][~repeats]])))
    return texts


def placeholders_of(processor: SalmonnProcessor, inputs: Any) -> list[int]:
    return (inputs["input_ids"] == processor.audio_token_id).sum(dim=1).tolist()


def assert_same_inputs(first: Any, second: Any) -> None:
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
