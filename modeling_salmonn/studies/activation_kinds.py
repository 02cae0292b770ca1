"""The kinds of data for activation tuning: what the model writes itself, transcripts, and stories without audio."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modeling_salmonn.activation.clips import clips_of
from modeling_salmonn.activation.tuning import SPEECH_TASK
from modeling_salmonn.activation.writing import ANSWERS_FILE, WritingSettings, report_of, write_answers
from modeling_salmonn.data.files import Journal, write_rows
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.text_statistics import split_words


STORY, QA, ASR_LONG, TEXT_STORY = "story", "qa", "asr_long", "text_story"
QUESTION_SHARES = {STORY: 0.0, QA: 1.0}  # of what the model writes itself


def make_kinds(
    answerer: Answerer,
    clips: Sequence[Row],
    rows: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    settings: WritingSettings,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Make the data of each kind, `OUTPUT/KIND/answers.jsonl`, as many answers as the settings say or the data give.

    Returns:
        The manifest of each kind, and why kinds are left out.

    Raises:
        ValueError: if all are, or the model cannot write.
    """
    files = {kind: output / kind / ANSWERS_FILE for kind in (*QUESTION_SHARES, ASR_LONG, TEXT_STORY)}
    reasons = {}
    for kind, share in QUESTION_SHARES.items():
        own = replace(settings, question_share=share)
        reasons[kind] = _why_not_written(answerer, clips, files[kind].parent, prompts, own)
    stories = Journal(files[STORY]).rows
    words = mean_words(stories) if stories else settings.min_words
    speech = speech_rows(clips) or speech_rows(rows)
    transcripts = join_transcripts(speech, settings.answers, words)
    for index, row in enumerate(transcripts):
        row["prompt"] = random.Random(f"{settings.seed}/{index}").choice(prompts[SPEECH_TASK])
    texts = [{"task": row["task"], "prompt": row["prompt"], "text": row["text"]} for row in stories]
    for kind, made in ((ASR_LONG, transcripts), (TEXT_STORY, texts)):
        if made:
            files[kind].parent.mkdir(parents=True, exist_ok=True)
            write_rows(files[kind], made)
    if not speech:
        reasons[ASR_LONG] = f"neither the clips nor the rows have a text of the task {SPEECH_TASK}; give some that do."
    elif not transcripts:
        reasons[ASR_LONG] = (
            f"all {len(speech)} transcripts together have fewer words than one story ({words:.0f}); give more."
        )
    if not texts:
        reasons[TEXT_STORY] = f"there are no stories; see why {STORY} is left out."
    left_out = {}
    for kind in list(files):
        if reasons.get(kind):
            left_out[kind] = reasons[kind]
            del files[kind]
    if not files:
        listed = " ".join(f"{kind}: {reason}" for kind, reason in left_out.items())
        raise ValueError(f"There is no kind of data to tune on. {listed}")
    return files, left_out


def _why_not_written(
    answerer: Answerer, clips: Sequence[Row], folder: Path, prompts: Mapping[str, list[str]], settings: WritingSettings
) -> str:
    """Have the model write; empty, or why it writes nothing of the kind."""
    try:
        write_answers(answerer, clips, folder, prompts, settings)
    except ValueError as error:
        report = report_of(folder)
        if report.kept or not report.rejected:  # it did not come to writing
            raise
        return str(error)
    return ""


def speech_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of speech recognition with words, one of each file."""
    found = {}
    for row in rows:
        is_speech = row.get("task") == SPEECH_TASK and split_words(row.get("text") or "")
        if is_speech and isinstance(row.get("path"), str):
            found[row["path"]] = row
    return list(found.values())


def join_transcripts(speech: Sequence[Row], count: int, words: float) -> list[Row]:
    """At most `count` transcripts of at least as many `words`, of clips joined one after the other, none twice.

    The rows have `path`, `task` and `text`, and `expand_wav` where clips are joined.
    """
    # The longest come first, so that few joints are needed.
    waiting = sorted(speech, key=lambda row: len(split_words(row["text"])), reverse=True)
    joined: list[Row] = []
    texts: list[str] = []
    clips: list[str] = []
    for row in waiting:
        if len(joined) == count:
            break
        texts.append(row["text"].strip())
        clips += clips_of(row)
        text = " ".join(texts)
        if len(split_words(text)) >= words:
            joined.append({"path": clips[0], "task": SPEECH_TASK, "text": text})
            if len(clips) > 1:
                joined[-1]["expand_wav"] = clips[1:]
            texts, clips = [], []
    return joined  # without what is left over, which is too short


def mean_words(answers: Sequence[Row]) -> float:
    """Mean number of words in an answer."""
    return sum(len(split_words(row["text"])) for row in answers) / len(answers)
