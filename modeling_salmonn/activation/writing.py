"""Long answers that a model writes itself, to be tuned on (paper, section 3.3).

At a discounted LoRA scale a model that over-fits to transcripts and captions still tells stories. For each of a few
clips this module draws answers until one is fit to learn from:

```
clip -> transcript, caption (full scale, greedy)
     -> story or answer to an open question (discounted scale, sampled) -> kept in answers.jsonl
                                                                        -> or rejected.jsonl, with the reason
```

Both files are appended to answer by answer. Everything follows from the seed, so that a run that was interrupted
resumes to the same files. Once all is written, `answers.jsonl` is the user's to read and to change.
"""

import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_salmonn.activation.clips import asks_question, choose_clips, question_of
from modeling_salmonn.data.answers import Answer
from modeling_salmonn.data.clips import BadClips, ClipReader, UnreadableClipError
from modeling_salmonn.data.examples import Example, ExampleMaker
from modeling_salmonn.data.files import Journal, claim_folder, write_json
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.harness import content_hash
from modeling_salmonn.evaluation.instruction_following import (
    FALLBACK_TASKS,
    FALLBACK_TOKENS,
    Context,
    context_of,
    why_copied,
)
from modeling_salmonn.evaluation.text_statistics import end_at_sentence, repeats_itself, split_words
from modeling_salmonn.hub.weights_hash import answering_record


ANSWERS_FILE, REJECTED_FILE, RECORD_FILE = "answers.jsonl", "rejected.jsonl", "writing.json"
ANSWER_FIELDS, REJECTED_FIELDS = {"path": str, "text": str}, {"path": str, "reason": str}
STORY_TASK, QUESTION_TASK = "story", "audio_qa"
# For clips without a question of their own.
OPEN_QUESTIONS = (
    "What is happening here, and how can you tell?",
    "Where could this have been recorded, and why do you think so?",
    "What may have happened just before this, and what may come next?",
    "Who or what can be heard, and what are they busy with?",
)
UNREADABLE = "unreadable clip"


@dataclass(frozen=True)
class WritingSettings:
    """How answers are written."""

    answers: int = 12  # how many to keep, each about another clip
    question_share: float = 0.25  # of the clips a question is asked about; the others get a story
    lora_scale: float | None = None  # the discounted one; half of the trained one if not given
    seed: int = 0  # of the choice of clips and instructions, and of the sampling
    tries: int = 4  # answers drawn about a clip until it is given up
    min_words: int = 40  # shorter answers are not kept
    max_new_tokens: int = 300  # an answer that does not end by then is cut after its last whole sentence
    temperature: float = 1.0
    top_p: float = 0.9
    batch_size: int = 4  # clips answered at once

    def __post_init__(self) -> None:
        for name in ("answers", "tries", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.question_share <= 1:
            raise ValueError(f"question_share is a share between 0 and 1, got {self.question_share}.")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature must be positive and top_p between 0 and 1, got {self.temperature} and {self.top_p}."
            )


@dataclass(frozen=True)
class WritingReport:
    """What became of the answers."""

    file: Path  # the manifest of the kept ones
    kept: int  # how many it has
    rejected: dict[str, int]  # how many were not kept, by reason

    def summary(self) -> str:
        """The report in a line."""
        return f"{self.kept} answers in {self.file}; not kept: {self.rejections()}."

    def rejections(self) -> str:
        """The reasons for which answers were not kept, with their counts."""
        return ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "none"


def write_answers(
    answerer: Answerer,
    clips: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    settings: WritingSettings | None = None,
) -> WritingReport:
    """Have a model write answers to learn from, or resume where an earlier call was interrupted.

    Args:
        answerer: the model, with a LoRA adapter.
        clips: rows with a `path`; enough of them that some may fail.
        output: folder for the answers; a finished one is left as it is.
        prompts: instructions of each task, from `load_prompts`.
        settings: how to write.

    Raises:
        ValueError: if the folder has answers of other settings or prompts, or no answer is kept.
    """
    settings = settings or WritingSettings()
    settings = replace(settings, lora_scale=discounted_scale(answerer, settings.lora_scale))
    chosen = choose_clips(clips, settings.seed)
    record = asdict(settings) | {
        "model": answering_record(answerer.model),
        "clips": content_hash(sorted(chosen, key=lambda row: row["path"])),
        "prompts": content_hash(used_prompts(chosen, prompts)),
    }
    found = claim_folder(output, RECORD_FILE, record, [ANSWERS_FILE, REJECTED_FILE])
    finished = found.get("finished") is True
    if not finished:
        SelfWriter(answerer, output, prompts, settings).write(chosen)
    report = report_of(output)
    if not report.kept:
        raise ValueError(
            f"No answer about {len(chosen)} clips was kept: {report.rejections()}; see {output / REJECTED_FILE}. Try "
            "another lora_scale or temperature, a smaller min_words, or more clips."
        )
    if not finished:
        write_json(output / RECORD_FILE, record | {"finished": True, "rejected": report.rejected})
    return report


@dataclass
class Waiting:
    """A clip that waits for an answer that is kept."""

    index: int  # of the clip among those that are tried
    clip: Row
    audio: Any  # its samples; `None` if it cannot be read
    said: dict[str, str] = field(default_factory=dict)  # the model's own `transcript` and `caption`


class SelfWriter:
    """Writes answers about clips, chunk by chunk; the settings name the LoRA scale."""

    def __init__(self, answerer: Answerer, output: Path, prompts: Mapping[str, list[str]], settings: WritingSettings):
        self.answerer = answerer
        self.settings = settings
        self.prompts = dict(prompts)
        self.maker = ExampleMaker(prompts, ClipReader(answerer.extractor, BadClips(limit=sys.maxsize)))
        self.decoding = Decoding(
            settings.max_new_tokens,
            settings.lora_scale,
            sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        self.kept = Journal(output / ANSWERS_FILE, needed=ANSWER_FIELDS)
        self.rejected = Journal(output / REJECTED_FILE, needed=REJECTED_FIELDS)

    def write(self, clips: Sequence[Row]) -> None:
        """Go through the clips until enough answers are kept."""
        numbered = list(enumerate(clips))
        start = kept = 0
        with tqdm(total=self.settings.answers, desc="Answers", disable=None) as bar:
            while kept < self.settings.answers and start < len(clips):
                # No chunk is larger than what is missing, so that there are never too many answers.
                size = min(self.settings.batch_size, self.settings.answers - kept)
                chunk = numbered[start : start + size]
                if not all(self._is_settled(row["path"]) for _, row in chunk):
                    self._write_chunk(chunk)
                start += size
                # The file may already have answers about clips of later chunks.
                tried = {row["path"] for row in clips[:start]}
                kept = sum(row["path"] in tried for row in self.kept.rows)
                bar.update(kept - bar.n)

    def _is_settled(self, path: str) -> bool:
        if any(row["path"] == path for row in self.kept.rows):
            return True
        reasons = [row["reason"] for row in self.rejected.rows if row["path"] == path]
        return UNREADABLE in reasons or len(reasons) == self.settings.tries

    def _write_chunk(self, chunk: Sequence[tuple[int, Row]]) -> None:
        """All tries about some clips; a chunk that was interrupted gives the same answers again."""
        read = [Waiting(index, row, self._read(row)) for index, row in chunk]
        waiting = [one for one in read if one.audio is not None]
        self._add_fallbacks(waiting)
        for attempt in range(self.settings.tries):
            if not waiting:
                return
            rows = [self._instruct(one.index, one.clip, attempt) for one in waiting]
            examples = list(map(self._example, rows, [one.audio for one in waiting]))
            seed = f"{self.settings.seed}/{chunk[0][0]}/{attempt}"
            answers = self.answerer.answer(examples, self.decoding, seed)
            again = []
            for one, row, answer in zip(waiting, rows, answers, strict=True):
                if not self._file(row, answer, one):
                    again.append(one)
            waiting = again

    def _read(self, row: Row) -> Any:
        """Samples of a clip; `None` if it cannot be read, which is noted."""
        try:
            return self.maker.read(row)
        except UnreadableClipError:  # its reason has been logged
            self.rejected.append({"reason": UNREADABLE, "path": row["path"], "attempt": 0})
            return None

    def _add_fallbacks(self, waiting: Sequence[Waiting]) -> None:
        """The model's transcript and caption of each clip, at full scale."""
        if not waiting:
            return
        for name, task in FALLBACK_TASKS.items():
            examples = [{"instruction": self.prompts[task][0], "audio": one.audio} for one in waiting]
            answers = self.answerer.answer(examples, Decoding(FALLBACK_TOKENS))
            for one, answer in zip(waiting, answers, strict=True):
                one.said[name] = answer.text

    def _instruct(self, index: int, clip: Row, attempt: int) -> Row:
        """The row of an answer, still without text: a task, an instruction, and the question if it has one."""
        rng = random.Random(f"{self.settings.seed}/{index}/{attempt}")
        row: Row = {"path": clip["path"], "attempt": attempt}
        if clip.get("expand_wav"):
            row["expand_wav"] = clip["expand_wav"]
        if not asks_question(index, self.settings.question_share):
            return row | {"task": STORY_TASK, "prompt": rng.choice(self.prompts[STORY_TASK])}
        own = question_of(clip)
        task = clip["task"] if own and clip["task"] in self.prompts else QUESTION_TASK
        return row | {"task": task, "prompt": rng.choice(self.prompts[task]), "Q": own or rng.choice(OPEN_QUESTIONS)}

    def _example(self, row: Row, audio: Any) -> Example:
        return {"instruction": self.maker.instruction(row, random.Random(0)), "audio": audio}

    def _file(self, row: Row, answer: Answer, one: Waiting) -> bool:
        """Note an answer where it belongs; whether it is kept."""
        text = answer.text if answer.finished else end_at_sentence(answer.text)
        reason = why_rejected(text, context_of(one.clip, **one.said), self.settings.min_words)
        if reason is None:
            self.kept.append(row | {"text": text} | one.said)
        else:
            self.rejected.append({"reason": reason} | row | {"text": answer.text} | one.said)
        return reason is None


def why_rejected(text: str, context: Context, min_words: int) -> str | None:
    """Why an answer is not fit to learn from; `None` if it is."""
    copied = why_copied(text, context)
    if copied is not None:
        return copied
    if repeats_itself(text):
        return "loops"
    return None if len(split_words(text)) >= min_words else "too short"


def discounted_scale(answerer: Answerer, wanted: float | None) -> float:
    """The LoRA scaling to write at: the one that is wanted, or half of the trained one, as in the paper."""
    scale = answerer.model.config.lora_scaling / 2 if wanted is None else wanted
    with answerer.model.lora_scale(scale):  # refuses a negative scale, and a model without an adapter
        return scale


def used_prompts(clips: Sequence[Row], prompts: Mapping[str, list[str]]) -> dict[str, list[str] | None]:
    """The instructions that answers about some clips follow from."""
    asked = [clip["task"] for clip in clips if question_of(clip)]
    tasks = (STORY_TASK, QUESTION_TASK, *FALLBACK_TASKS.values(), *asked)
    return {task: prompts.get(task) for task in tasks}


def report_of(output: Path) -> WritingReport:
    """What the files of a folder hold."""
    rejected = Counter(row["reason"] for row in Journal(output / REJECTED_FILE, needed=REJECTED_FIELDS).rows)
    kept = Journal(output / ANSWERS_FILE, needed=ANSWER_FIELDS).rows
    return WritingReport(output / ANSWERS_FILE, len(kept), dict(sorted(rejected.items())))
