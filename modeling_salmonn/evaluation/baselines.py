"""The parts of a cascade as peers of SALMONN: a speech recogniser, and a language model that reads the transcript.

As in the paper, they tell what could be had without a model that listens by itself: Whisper on speech recognition, the
language model on tasks about what is said, given the true transcript.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from modeling_salmonn.data.answers import Answer
from modeling_salmonn.data.examples import Example
from modeling_salmonn.data.tasks import Task
from modeling_salmonn.evaluation.answering import Answerer, Decoding, require_dtype
from modeling_salmonn.hub.devices import AUTO, process_state, resolve_device
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor


RECOGNITION = ("wer", "overlapped_wer")
ENGLISH_VOCABULARY = 51864  # of the Whispers for English alone; the others name the language first
READING = "The transcript of a recording: {transcript}\n\n{instruction}"


class WhisperAnswerer:
    """A Whisper with its own decoder: transcripts, whatever is asked; `dtype` and `device` as of `Answerer`."""

    def __init__(self, folder: str, dtype: str = "float32", device: str = AUTO):
        self.extractor = SalmonnFeatureExtractor()
        loaded = WhisperForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = loaded.eval().to(resolve_device(device))
        self.features = WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        is_multilingual = self.model.config.vocab_size > ENGLISH_VOCABULARY
        language = ["<|en|>", "<|transcribe|>"] if is_multilingual else []
        start = ["<|startoftranscript|>", *language, "<|notimestamps|>"]
        self.start = self.tokenizer.convert_tokens_to_ids(start)

    @staticmethod
    def prepare(examples: Sequence[Example]) -> list[Example]:
        """The examples; their features are a small part of the work."""
        return list(examples)

    def answer_prepared(self, examples: Sequence[Example], decoding: Decoding) -> list[Answer]:
        """Transcripts; clips of more than 30 s in parts of 30 s."""
        parts: list[Any] = []
        counts = []
        for example in examples:
            own = torch.as_tensor(example["audio"]).split(self.features.n_samples)
            parts += [part.numpy() for part in own]
            counts.append(len(own))
        texts = iter(self._transcribe(parts, decoding))
        return [Answer(" ".join(islice(texts, count)), True) for count in counts]

    @torch.inference_mode()
    def _transcribe(self, clips: list[Any], decoding: Decoding) -> list[str]:
        features = self.features(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        # The decoder has 448 positions, of which the start takes some.
        limit = min(decoding.max_new_tokens, self.model.config.max_target_positions - len(self.start))
        ids = self.model.generate(
            features.to(self.model.device, self.model.dtype),
            decoder_input_ids=torch.tensor([self.start] * len(clips), device=self.model.device),
            max_new_tokens=limit,
            num_beams=decoding.num_beams,
            do_sample=False,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class ReadingAnswerer:
    """A causal language model with a chat template, which is given the true transcript instead of the clip.

    `dtype` and `device` are as of `Answerer`.
    """

    def __init__(self, folder: str, dtype: str = "float32", device: str = AUTO):
        self.extractor = SalmonnFeatureExtractor()  # clips are read, although nobody listens
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = loaded.eval().to(resolve_device(device))

    @staticmethod
    def prepare(examples: Sequence[Example]) -> list[Example]:
        """The examples, which it reads as they are."""
        return list(examples)

    @torch.inference_mode()
    def answer_prepared(self, examples: Sequence[Example], decoding: Decoding) -> list[Answer]:
        """Answers to the instructions about the transcripts.

        Raises:
            ValueError: if an example has no transcript.
        """
        prompts = [self._prompt(example) for example in examples]
        # The template has written the special tokens already.
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self.model.device)
        output = self.model.generate(
            **inputs, max_new_tokens=decoding.max_new_tokens, num_beams=decoding.num_beams, do_sample=False
        )
        # Padding is on the left, so that all answers begin at one place.
        texts = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [Answer(text.strip(), True) for text in texts]

    def _prompt(self, example: Example) -> str:
        if not example.get("transcript"):
            raise ValueError(
                f"{example['path']} has no 'transcript', which a language model reads instead of listening; add it, "
                "or choose tasks about speech."
            )
        content = READING.format(transcript=example["transcript"], instruction=example["instruction"])
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load_answerer(model: str, dtype: str = "float32", device: str = AUTO) -> Any:
    """A SALMONN, a Whisper or a language model, told apart by its configuration; `dtype` is the type of its weights.

    Raises:
        ValueError: if there is no model, or no such type or device.
    """
    require_dtype(dtype)
    process_state()  # before the model is loaded: it gives each process an accelerator of its own
    try:
        kind = AutoConfig.from_pretrained(model).model_type
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} holds no model whose configuration can be read ({error}).") from error
    if kind == "salmonn":
        return Answerer.from_pretrained(model, dtype, device)
    if kind == "whisper":
        return WhisperAnswerer(model, dtype, device)
    return ReadingAnswerer(model, dtype, device)


def require_scale(answerer: Any, model: str) -> None:
    """Refuse, by a `ValueError`, to answer at another LoRA scale without an adapter, which peers never have."""
    if not (isinstance(answerer, Answerer) and answerer.model.has_lora):
        raise ValueError(
            f"{model} has no LoRA adapter, so there is no scale to change; give a SALMONN with one, or no scale."
        )


def tasks_for(answerer: Any, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that a model is meant for, at least one: recognition for a Whisper, all else for a language model."""
    if isinstance(answerer, (WhisperAnswerer, ReadingAnswerer)):
        recognises = isinstance(answerer, WhisperAnswerer)
        tasks = [task for task in tasks if recognises != set(RECOGNITION).isdisjoint(task.metrics)]
    if not tasks:
        raise ValueError(
            f"None of the tasks is for a {type(answerer.model).__name__}; a Whisper recognises speech, a "
            "language model reads transcripts."
        )
    return list(tasks)
