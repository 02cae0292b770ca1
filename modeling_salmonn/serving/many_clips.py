"""One question about many clips: answered in batches of like length, by one process or several, and resumed.

```
JOURNAL/settings.json   what the answers are to
JOURNAL/answers-N.jsonl rows of process N as they are made: an answer about a clip, or about a window of it, or why
                        there is none
```
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_salmonn.data.answers import decode_answers
from modeling_salmonn.data.clips import USUAL_SECONDS, header_seconds
from modeling_salmonn.data.files import Journal, Kinds, claim_folder
from modeling_salmonn.hub.devices import default_workers, process_state
from modeling_salmonn.hub.weights_hash import answering_record
from modeling_salmonn.pipeline_salmonn import AudioTextPipeline
from modeling_salmonn.serving.prepared_clips import PreparedBatch, PreparedClips, Window


Row = dict[str, Any]

KEYS = ("path", "window", "error")  # a clip that failed may be answered later
FIELDS: Kinds = {"path": str, "window": int, "windows": int, "start": (int, float), "end": (int, float)}
ROW_FILES, SETTINGS_FILE = "answers-*.jsonl", "settings.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True)
class Asking:
    """What is asked, and how; with `answering_record` all that answers depend on.

    Args:
        question: the instruction.
        max_new_tokens: longest answer.
        num_beams, lora_scale: `None` for the model's own.
        window_seconds: longer clips are cut into windows of at most so many seconds, each asked apart; `None` leaves
            them whole.
    """

    question: str
    max_new_tokens: int
    num_beams: int | None = None
    lora_scale: float | None = None
    window_seconds: float | None = None

    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        given = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, "lora_scale": self.lora_scale}
        return {name: value for name, value in given.items() if value is not None}


def ask_clips(
    pipe: AudioTextPipeline,
    clips: Sequence[str],
    asking: Asking,
    journal: Path,
    batch_size: int = 8,
    num_workers: int | None = None,
) -> list[list[Row]]:
    """Answer what has no answer yet; a clip that cannot be read is noted, and stops nothing.

    Args:
        pipe: the model with its processor.
        clips: paths and URLs.
        asking: what to ask.
        journal: folder of the rows; those of an earlier call are kept, and failures of it are tried again.
        batch_size: clips, or windows, answered at once.
        num_workers: processes that read clips beside the model; `None` for `default_workers`.

    Returns:
        For each clip the rows of its windows: `path`, `window`, `windows`, `start` and `end` in seconds, `answer`,
        `finished`; or one row with `error`.

    Raises:
        ValueError: if the journal has answers to something else, or is damaged.
    """
    state = process_state()
    claim_folder(journal, SETTINGS_FILE, asdict(asking) | answering_record(pipe.model), [ROW_FILES])
    known = read_rows(journal)
    pending = [clip for clip in clips if not known.is_answered(clip)]
    lengths = _lengths(pending, shown=state.is_main_process)
    pending.sort(key=lengths.__getitem__, reverse=True)  # what needs most memory comes first
    state.wait_for_everyone()  # all have read what there was
    units = [pending[start : start + batch_size] for start in range(0, len(pending), batch_size)]
    own = units[state.process_index :: state.num_processes]
    prepared = PreparedClips(
        own, pipe.processor, asking.question, batch_size, asking.window_seconds, known.answered_windows(pending)
    )
    writer = _RowWriter(pipe, asking, prepared, Journal(journal / f"answers-{state.process_index}.jsonl", KEYS))
    with tqdm(
        total=sum(lengths[clip] for unit in own for clip in unit),
        desc="Answers",
        bar_format=BAR,
        disable=not state.is_main_process or None,
    ) as bar:
        for clip, windows in writer.write(default_workers(pipe.device) if num_workers is None else num_workers):
            bar.update(lengths[clip] / windows)
            if writer.failed:
                bar.set_postfix(failed=writer.failed)
    state.wait_for_everyone()
    known = read_rows(journal)
    return [known.rows_of(clip) for clip in clips]


@dataclass(frozen=True)
class KnownRows:
    """The rows of a journal.

    Args:
        answers: by the clip's name and the number of the window.
        failures: by the clip's name.
    """

    answers: Mapping[str, Mapping[int, Row]]
    failures: Mapping[str, Row]

    def is_answered(self, clip: str) -> bool:
        """Whether all windows of a clip have their answers."""
        windows = self.answers.get(row_name(clip))
        return windows is not None and len(windows) == next(iter(windows.values()))["windows"]

    def answered_windows(self, clips: Sequence[str]) -> set[tuple[str, int]]:
        """Clips and the numbers of their windows that have answers."""
        return {(clip, window) for clip in clips for window in self.answers.get(row_name(clip), ())}

    def rows_of(self, clip: str) -> list[Row]:
        """The answers about a clip in the order of its windows, or why it has none."""
        if not self.is_answered(clip):
            return [self.failures[row_name(clip)]]
        return [row for _, row in sorted(self.answers[row_name(clip)].items())]


def read_rows(journal: Path) -> KnownRows:
    """The rows that all processes have written into a folder."""
    answers: dict[str, dict[int, Row]] = {}
    failures: dict[str, Row] = {}
    for file in sorted(journal.glob(ROW_FILES)):
        for row in Journal(file, KEYS, FIELDS).rows:
            if row.get("error") is None:
                answers.setdefault(row["path"], {})[row["window"]] = row
            else:
                failures[row["path"]] = row
    return KnownRows(answers, failures)


def row_name(clip: str) -> str:
    """The path of a clip as a row has it: in UTF-8, where names of files may have any bytes."""
    return clip.encode("utf-8", errors="backslashreplace").decode("utf-8")


class _RowWriter:
    """Answers what is prepared and writes it down row by row."""

    def __init__(self, pipe: AudioTextPipeline, asking: Asking, prepared: PreparedClips, journal: Journal):
        self.pipe = pipe
        self.options = asking.options()
        self.prepared = prepared
        self.journal = journal
        self.failed = 0

    def write(self, num_workers: int) -> Iterator[tuple[str, int]]:
        """Write all rows; yields the clip of each, and how many windows that has."""
        for batch in DataLoader(self.prepared, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers):
            for clip, row in self._rows(batch):
                self.journal.append(row)
                self.failed += row["error"] is not None
                yield clip, row["windows"]

    def _rows(self, batch: PreparedBatch) -> Iterator[tuple[str, Row]]:
        for clip, reason in batch.failures:
            yield clip, _row(Window(clip, 0, 1, 0.0, 0.0), error=" ".join(reason.split()))
        if not batch.windows:
            return
        new_tokens = self.pipe.forward(batch.inputs, **self.options)["new_tokens"]
        answers = decode_answers(new_tokens, self.pipe.processor.tokenizer, self.pipe.model.generation_config)
        for window, answer in zip(batch.windows, answers, strict=True):
            yield window.clip, _row(window, answer.text, answer.finished)


def _row(window: Window, answer: str | None = None, finished: bool | None = None, error: str | None = None) -> Row:
    return {
        "path": row_name(window.clip),
        "window": window.index,
        "windows": window.count,
        "start": round(window.start, 3),
        "end": round(window.end, 3),
        "answer": answer,
        "finished": finished,
        "error": error,
    }


def _lengths(clips: Sequence[str], shown: bool) -> dict[str, float]:
    """Seconds of clips by their headers; the usual ones where these do not tell."""
    lengths = {}
    for clip in tqdm(clips, desc="Clip lengths", leave=False, disable=not shown or None):
        seconds = header_seconds(clip)
        lengths[clip] = USUAL_SECONDS if seconds is None else seconds
    return lengths


def _as_it_is(value: Any) -> Any:
    return value
