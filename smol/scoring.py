"""Scores salmonn-smol on the rows of a manifest: every task with its metric, and all answers to read.

Whisper-tiny.en itself, with the decoder that its package carries, is the yardstick of the speech rows.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from modeling_salmonn.evaluation.metrics import (
    accuracy,
    bleu,
    mention_rate,
    overlapped_word_error_rate,
    parse_gender,
    parse_yes_no,
    phone_error_rate,
    plain_answer,
    word_error_rate,
)
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.processing.prompts import choose_prompt, load_prompts
from modeling_salmonn.smol.manifests import content_words


Row = dict[str, Any]
Scores = dict[str, dict[str, float]]
MAX_NEW_TOKENS = {"phone_recognition": 120, "overlapped_speech": 100}
USUAL_NEW_TOKENS = 64


def read_rows(manifest: Path, most: int | None = None, seed: int = 0) -> dict[str, list[Row]]:
    """Rows of a manifest by task, at most so many of each, drawn at random.

    Raises:
        ValueError: if there is no such file.
    """
    if not manifest.is_file():
        raise ValueError(f"There is no manifest {manifest}; write it with: salmonn smol manifests.")
    tasks: dict[str, list[Row]] = defaultdict(list)
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        tasks[row["task"]].append(row)
    rng = random.Random(seed)
    return {task: rng.sample(rows, min(most or len(rows), len(rows))) for task, rows in sorted(tasks.items())}


def answer_rows(
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    rows: Sequence[Row],
    prompts: dict[str, list[str]],
    batch_size: int = 16,
) -> list[str]:
    """The model's greedy answers to rows of one task, in their order; clips of like length share a batch."""
    rng = random.Random(0)
    order = sorted(range(len(rows)), key=lambda index: rows[index]["seconds"])
    answers = [""] * len(rows)
    for batch in tqdm(list(_batches(order, batch_size)), desc=rows[0]["task"] if rows else "", leave=False):
        chosen = [rows[index] for index in batch]
        texts = [row.get("prompt") or choose_prompt(prompts, row["task"], rng, **_fields(row)) for row in chosen]
        inputs = processor(text=texts, audio=[row["path"] for row in chosen])
        most = MAX_NEW_TOKENS.get(chosen[0]["task"], USUAL_NEW_TOKENS)
        output = model.generate(**inputs, max_new_tokens=most)
        made = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, answer in zip(batch, made, strict=True):
            answers[index] = answer.strip()
    return answers


def score_rows(task: str, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """The metrics of a task, as fractions (BLEU from 0 to 100)."""
    references = [row["text"] for row in rows]
    if task == "asr":
        return {"wer": word_error_rate(references, answers)}
    if task == "overlapped_speech":
        return {"wer": overlapped_word_error_rate(references, answers)}
    if task == "phone_recognition":
        return {"per": phone_error_rate(references, answers)}
    if task == "translation":
        return _by_language(rows, answers)
    if task == "audio_caption":
        return _named_sounds(rows, answers)
    if task == "music_caption":
        first = [[row["instruments"].split(", ")[0]] for row in rows]
        return {"first_instrument": mention_rate(first, answers)}
    if task == "gender_recognition":
        return {"accuracy": accuracy(references, answers, parse_gender)}
    if task == "speaker_verification":
        return {"accuracy": accuracy(references, answers, parse_yes_no)}
    if task == "keyword_extraction":
        return {"recall": _keyword_recall(references, answers)}
    return {"accuracy": accuracy(references, answers, _short_answer)}


def score_manifest(
    folder: Path,
    manifest: Path,
    tasks: Sequence[str] | None = None,
    most: int | None = None,
    prompts: Path | None = None,
) -> Iterator[tuple[Scores, list[Row]]]:
    """Score a SALMONN task by task.

    Args:
        folder: of the model.
        manifest: with the rows.
        tasks: only these.
        most: rows of each task.
        prompts: JSON file of instructions per task, instead of the bundled one.

    Yields:
        The metrics of one more task, and all rows so far with their answers.
    """
    model = SalmonnForConditionalGeneration.from_pretrained(folder).eval()
    processor = SalmonnProcessor.from_pretrained(folder)
    instructions = load_prompts(prompts)
    answered: list[Row] = []
    for task, rows in read_rows(manifest, most).items():
        if tasks and task not in tasks:
            continue
        answers = answer_rows(model, processor, rows, instructions)
        answered += [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
        yield {task: score_rows(task, rows, answers) | {"rows": len(rows)}}, answered


def score_whisper(folder: Path, manifest: Path, most: int | None = None) -> Iterator[tuple[Scores, list[Row]]]:
    """Score a Whisper on the speech recognition of a manifest, as `score_manifest` does."""
    rows = read_rows(manifest, most)["asr"]
    answers = whisper_transcripts(folder, rows)
    answered = [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
    yield {"asr": score_rows("asr", rows, answers) | {"rows": len(rows)}}, answered


@torch.inference_mode()
def whisper_transcripts(folder: Path, rows: Sequence[Row], batch_size: int = 8) -> list[str]:
    """What Whisper itself writes down, greedily, with its own decoder and segments of 30 s."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    texts: list[str] = []
    for batch in tqdm(list(_batches(rows, batch_size)), desc="Whisper", leave=False):
        clips = [soundfile.read(row["path"], dtype="float32")[0] for row in batch]
        features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
        prompt = torch.tensor([start] * len(batch))
        ids = model.generate(features, decoder_input_ids=prompt, max_new_tokens=100, do_sample=False)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _fields(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: row[name] for name in ("question", "language", "slots") if row.get(name)}


def _by_language(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row["language"]].append(index)
    return {
        f"bleu_{language.lower()}": bleu([rows[i]["text"] for i in group], [answers[i] for i in group], language)
        for language, group in sorted(groups.items())
    }


def _named_sounds(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """How often a noun of the class or of the label is named, over all sounds and over those with a class."""
    wanted = [_class_nouns(row) + content_words(row["text"]).split() for row in rows]
    metrics = {"named": mention_rate(wanted, answers)}
    classed = [index for index, row in enumerate(rows) if row["sound_class"]]
    if classed:
        metrics["class_named"] = mention_rate([_class_nouns(rows[i]) for i in classed], [answers[i] for i in classed])
    return metrics


def _class_nouns(row: Row) -> list[str]:
    return [word for word in row["sound_class"].split() if word != "or"]


def _keyword_recall(references: Sequence[str], answers: Sequence[str]) -> float:
    shares = []
    for reference, answer in zip(references, answers, strict=True):
        wanted = reference.split(", ")
        shares.append(sum(word in plain_answer(answer).split() for word in wanted) / len(wanted))
    return sum(shares) / len(shares)


def _short_answer(text: str) -> str:
    """Yes or no if it starts with it, the plain words otherwise."""
    first = parse_yes_no(text.split(",")[0])
    return first or plain_answer(text)


__all__ = ["answer_rows", "read_rows", "score_manifest", "score_rows", "score_whisper", "whisper_transcripts"]
