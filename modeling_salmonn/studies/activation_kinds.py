"""The kinds of data for activation tuning: what the model writes itself, transcripts, and stories without audio."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modeling_salmonn.activation.clips import choose_clips, question_of
from modeling_salmonn.activation.writing import (
    ANSWERS_FILE,
    QUESTION_TASK,
    WritingSettings,
    report_of,
    write_answers,
)
from modeling_salmonn.data.files import Journal, write_rows
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.sources import locate_clip
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.comparison import SPEECH_TASK
from modeling_salmonn.evaluation.text_statistics import split_words


STORY, QA, ASR_LONG, TEXT_STORY = "story", "qa", "asr_long", "text_story"


class KindLeftOutError(Exception):
    """What was given does not suffice for a kind of data; the message says why."""


class DataMaker:
    """Makes the data of each kind: `OUTPUT/KIND/answers.jsonl`.

    Args:
        answerer: the untouched model.
        clips, rows, output, prompts: as for `compare_activation_data`.
        settings: how the model writes; the other kinds have as many answers, or as many as the data give.
    """

    def __init__(
        self,
        answerer: Answerer,
        clips: Sequence[Row],
        rows: Sequence[Row],
        output: Path,
        prompts: Mapping[str, list[str]],
        settings: WritingSettings,
    ):
        self.answerer = answerer
        self.clips = clips
        self.rows = rows
        self.prompts = prompts
        self.settings = settings
        self.files = {kind: output / kind / ANSWERS_FILE for kind in (STORY, QA, ASR_LONG, TEXT_STORY)}

    def make(self) -> tuple[dict[str, Path], dict[str, str]]:
        """Make all kinds.

        Returns:
            The manifest of each, and why kinds are left out.

        Raises:
            ValueError: if all are, or the model cannot write.
        """
        makers = {STORY: self.stories, QA: self.long_answers, ASR_LONG: self.transcripts, TEXT_STORY: self.texts}
        reasons = {kind: _why_left_out(make) for kind, make in makers.items()}
        left_out = {kind: reason for kind, reason in reasons.items() if reason is not None}
        if len(left_out) == len(makers):
            listed = " ".join(f"{kind}: {reason}" for kind, reason in left_out.items())
            raise ValueError(f"There is no kind of data to tune on. {listed}")
        return {kind: file for kind, file in self.files.items() if kind not in left_out}, left_out

    def stories(self) -> None:
        """Stories that the model writes at a discounted LoRA scale."""
        self._write_own(STORY, question_share=0.0)

    def long_answers(self) -> None:
        """Long answers to the clips' own questions, or to open ones; written in the same way."""
        asked = {clip["task"] if question_of(clip) else QUESTION_TASK for clip in choose_clips(self.clips, seed=0)}
        unknown = sorted(asked - self.prompts.keys())
        if unknown:
            raise KindLeftOutError(f"there are no instructions for {', '.join(unknown)}; add them to the prompts.")
        self._write_own(QA, question_share=1.0)

    def transcripts(self) -> None:
        """Long transcripts: clips joined, the longest first, until their words are as many as a story's."""
        speech = speech_rows(self.clips) or speech_rows(self.rows)
        if not speech:
            raise KindLeftOutError(
                f"neither the clips nor the rows have a text of the task {SPEECH_TASK}; give some that do."
            )
        stories = self._stories()
        words = mean_words(stories) if stories else self.settings.min_words
        joined = join_transcripts(speech, self.settings.answers, words)
        if not joined:
            raise KindLeftOutError(
                f"all {len(speech)} transcripts together have fewer words than one story ({words:.0f}); give more."
            )
        self._write(ASR_LONG, [row | {"prompt": self._prompt(index)} for index, row in enumerate(joined)])

    def texts(self) -> None:
        """The stories with their instructions, without audio."""
        stories = self._stories()
        if not stories:
            raise KindLeftOutError(f"there are no stories; see why {STORY} is left out.")
        kept = ("task", "prompt", "text")
        self._write(TEXT_STORY, [{name: value for name, value in row.items() if name in kept} for row in stories])

    def _write_own(self, kind: str, question_share: float) -> None:
        folder = self.files[kind].parent
        settings = replace(self.settings, question_share=question_share)
        try:
            write_answers(self.answerer, self.clips, folder, self.prompts, settings)
        except ValueError as error:
            report = report_of(folder)
            if report.kept or not report.rejected:
                raise
            raise KindLeftOutError(str(error)) from error  # the model writes nothing of the kind

    def _stories(self) -> list[Row]:
        return Journal(self.files[STORY]).rows

    def _prompt(self, index: int) -> str:
        return random.Random(f"{self.settings.seed}/{index}").choice(self.prompts[SPEECH_TASK])

    def _write(self, kind: str, rows: Sequence[Row]) -> None:
        self.files[kind].parent.mkdir(parents=True, exist_ok=True)
        write_rows(self.files[kind], rows)


def speech_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of speech recognition with words, one of each file."""
    found = {
        row["path"]: row
        for row in rows
        if row.get("task") == SPEECH_TASK and isinstance(row.get("path"), str) and split_words(row.get("text") or "")
    }
    return list(found.values())


def join_transcripts(speech: Sequence[Row], count: int, words: float) -> list[Row]:
    """Long transcripts, each of clips joined one after the other; no clip comes twice.

    Args:
        speech: rows of speech recognition; the longest come first.
        count: how many to make, at most.
        words: how many words each of them has, at least.

    Returns:
        Rows with `path`, `task` and `text`, and with `expand_wav` where clips are joined.
    """
    waiting = sorted(speech, key=lambda row: len(split_words(row["text"])), reverse=True)
    joined: list[Row] = []
    parts: list[Row] = []
    for part in waiting:
        if len(joined) == count:
            break
        parts.append(part)
        text = " ".join(row["text"].strip() for row in parts)
        if len(split_words(text)) >= words:
            first, *others = [clip for row in parts for clip in clips_of(row)]
            long_row = {"path": first, "task": SPEECH_TASK, "text": text}
            joined.append(long_row | ({"expand_wav": others} if others else {}))
            parts = []
    return joined


def clips_of(row: Row) -> list[str]:
    """The absolute paths of a row's clips."""
    clips = [row.get("path"), *(row.get("expand_wav") or [])]
    return [locate_clip(clip, "") for clip in clips if isinstance(clip, str)]


def mean_words(answers: Sequence[Row]) -> float:
    """Mean number of words in an answer."""
    return sum(len(split_words(row["text"])) for row in answers) / len(answers)


def _why_left_out(make: Callable[[], None]) -> str | None:
    try:
        make()
    except KindLeftOutError as error:
        return str(error)
    return None


__all__ = ["DataMaker", "clips_of", "join_transcripts", "mean_words", "speech_rows"]
