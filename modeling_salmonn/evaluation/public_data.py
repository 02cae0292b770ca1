"""The public data sets of the paper's tasks (section 4) as rows, from the Hub or from folders.

`public_data.yaml` says where each of them is, which columns it has, what of it is an answer, and how to get at its
audio; only what is no matter of columns has a function here. Rows have `path`, `task` and `text`, and where the task
has them `references` (all accepted texts), `language`, `question`, `slots`, `transcript` (what is said) and
`expand_wav`. Whatever is left out is counted and told.
"""

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download

from modeling_salmonn.data.rows import Row, load_rows
from modeling_salmonn.data.sources import DataSource
from modeling_salmonn.data.tables import read_manifest
from modeling_salmonn.data.text_files import read_text


logger = logging.getLogger(__name__)

ARROW_SUFFIXES = (".csv", ".parquet")
CLIP_SUFFIXES = (
    "",
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
)  # a copy may be in another format than the original
LIBRISPEECH_TRANSCRIPTS = "LibriSpeech/test-clean/*/*/*.trans.txt"
SPACE_WITHIN_WORD = re.compile(r" (?='|n't\b)")  # tokens such as "what" and "'s"


@dataclass(frozen=True)
class PublicData:
    """An entry of `public_data.yaml`, which explains its fields."""

    files: str
    task: str
    licence: str
    access: str
    reader: str = "plain"
    columns: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    clip: str | None = None
    joined: str | None = None
    language: str | None = None
    lines: str | None = None
    form: str = ""
    other_lines: bool = False
    grouped: bool = False
    keep: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    left_out: str = "without text"


@dataclass
class Source:
    """A data set that has been found."""

    name: str
    entry: PublicData
    files: Sequence[Path]  # what is read
    folder: Path  # where its clips are
    left_out: Counter[str] = field(default_factory=Counter)  # rows by reason
    missing: list[str] = field(default_factory=list)  # clips that are not there

    def table(self) -> Iterator[Row]:
        """Rows of the files: the needed columns under our names, `None` where a row has nothing."""
        for file in self.files:
            if self.entry.lines is not None:
                yield from self._lines(file, self.entry.lines)
            elif file.suffix in ARROW_SUFFIXES:
                for row in self._arrow_table(file):
                    yield {name: row.get(name) for name in self.entry.columns}
            else:
                rows = read_tsv(file) if file.suffix == ".tsv" else read_manifest(file)
                self._check_columns(rows[0] if rows else (), file)
                for row in rows:
                    yield {ours: row[theirs] for ours, theirs in self.entry.columns.items()}

    def groups(self) -> list[list[Row]]:
        """Rows of the table, those of one clip together where they are `grouped`."""
        groups = defaultdict(list)
        for number, values in enumerate(self.table()):
            key = self.clip(values) if self.entry.grouped else number  # a number is a group of its own
            groups[key].append(values)
        return list(groups.values())

    def answers(self, group: Sequence[Row]) -> list[str]:
        """The accepted texts of the rows about a clip; if there are none, why is noted."""
        entry = self.entry
        given: list[str] = []
        for values in group:
            told = {name: str(values[name]).lower() for name in entry.keep}
            if told == entry.keep:
                given += filter(None, (values[name] for name in entry.references or ("text",)))
        found = list(filter(None, map(self._answer, given)))
        if not found:
            self.left_out[f"of the class {given[0]!r}" if entry.labels else entry.left_out] += 1
        return found

    def _answer(self, text: str) -> str:
        """A text without the tags of its data set, or the class that a label stands for; empty if there is none."""
        if self.entry.labels:
            return self.entry.labels.get(text, "")
        if not self.entry.tags:
            return text
        return " ".join(word for word in text.split() if word.upper() not in self.entry.tags)

    def _lines(self, file: Path, pattern: str) -> list[Row]:
        """What a pattern names in the lines of a file, and the file's name as `file`."""
        rows = []
        lines = file.read_text(encoding="latin-1").splitlines()  # remarks of raters may have any bytes
        for number, line in enumerate(lines, start=1):
            match = re.match(pattern, line)
            if match is not None:
                rows.append(match.groupdict() | {"file": file.stem})
            elif not self.entry.other_lines:
                raise ValueError(f"Line {number} of {file} is {line!r}; it needs to be {self.entry.form}.")
        if not rows:
            raise ValueError(f"{file} has no lines of the form {self.entry.form}.")
        return rows

    def row(self, values: Mapping[str, Any], text: str, **others: Any) -> Row:
        """A row of the harness made of a row of the table; its clip is not yet looked for."""
        path = self.clip(values) if self.entry.clip else values["path"]  # which may be the audio itself
        language = {"language": self.entry.language} if self.entry.language else {}
        return {"path": path, "task": self.entry.task, "text": text} | language | others

    def clip(self, values: Mapping[str, Any]) -> str:
        """Where the clip of a row of the table should be within the folder."""
        return (self.entry.clip or "").format(**values)

    def located_rows(self) -> Iterator[Row]:
        """Rows with clips that can be opened; the others are noted."""
        for row in self._read_rows():
            wanted = [row["path"], *row.get("expand_wav", ())]
            clips = list(map(self._locate, wanted))
            if None in clips:
                self.missing.append(str(wanted[clips.index(None)]))
                continue
            row["path"] = clips[0]
            if len(clips) > 1:
                row["expand_wav"] = clips[1:]
            yield row

    def _read_rows(self) -> Iterator[Row]:
        try:
            yield from READERS[self.entry.reader](self)
        except (LookupError, TypeError, AttributeError) as error:  # of a row that is not what the reader knows
            raise ValueError(
                f"A row of {', '.join(file.name for file in self.files)} in {self.folder} is none of {self.name} "
                f"({type(error).__name__}: {error}); give the data set in its original form."
            ) from error

    def _locate(self, clip: Any) -> Any:
        if not isinstance(clip, str):
            return clip  # the audio itself
        for suffix in CLIP_SUFFIXES:
            path = self.folder / f"{clip}{suffix}"
            if path.is_file():
                return str(path)
        return None

    def _arrow_table(self, file: Path) -> Iterable[Row]:
        columns = dict(self.entry.columns)
        try:  # with audio that stays in the file until it is asked for
            rows = load_rows([DataSource(str(file), task=self.entry.task, columns=columns)])
        except ValueError as error:
            needed = sorted(columns.values())
            raise ValueError(f"{self.name} needs the columns {needed} of {file.name}: {error}") from error
        self._check_columns(rows.tables[0].data.column_names, file)
        return rows

    def _check_columns(self, found: Iterable[str], file: Path) -> None:
        needed = set(self.entry.columns.values())
        if not needed <= set(found):
            raise ValueError(
                f"{file} has the columns {sorted(found)}, but {self.name} needs {sorted(needed)}; give the data set "
                "in its original form."
            )


def load_public(name: str, folder: str | os.PathLike | None = None) -> list[Row]:
    """Rows of a public data set, at least one; those that the Hub's files have the audio of hold it in memory.

    Args:
        name: one of `PUBLIC_DATA`.
        folder: a copy of the data set's files in the same layout instead of the Hub's, and the clips where the Hub
            has none.
    """
    source = open_source(name, folder)
    rows = list(source.located_rows())
    left_out = dict(source.left_out)
    if source.missing:
        left_out[f"whose clips are not in {source.folder}, such as {source.missing[0]}"] = len(source.missing)
    for reason, count in left_out.items():
        logger.warning("%s: leaving out %d rows %s.", name, count, reason)
    if not rows:
        counts = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        raise ValueError(f"No rows of {name} are left. Left out: {counts}. {source.entry.access}")
    return rows


def open_source(name: str, folder: str | os.PathLike | None) -> Source:
    """Find the files of a data set: those in the folder if there are any, else the Hub's."""
    if name not in PUBLIC_DATA:
        raise ValueError(f"There is no public data set {name!r}; there are {', '.join(PUBLIC_DATA)}.")
    entry = PUBLIC_DATA[name]
    if folder is None and (entry.clip or not entry.hub):
        raise ValueError(f"{name} needs a folder. {entry.access}")
    place = Path(folder).expanduser() if folder is not None else download(name)
    files = sorted(place.glob(entry.files))
    if not files and place.is_dir() and entry.hub and entry.clip:  # the folder may have the clips alone
        files = sorted(download(name).glob(entry.files))
    if not files:
        raise ValueError(f"There is no {entry.files} of {name} in {place}. {entry.access}")
    return Source(name, entry, files, place)


def download(name: str) -> Path:
    """The files of a data set, and nothing else of its repository, in the Hub's cache."""
    entry = PUBLIC_DATA[name]
    try:
        return Path(snapshot_download(str(entry.hub), repo_type="dataset", allow_patterns=entry.files))
    except OSError as error:
        raise ValueError(f"{name} cannot be downloaded from {entry.hub} ({error}). {entry.access}") from error


def read_tsv(file: Path) -> list[Row]:
    """Rows of a table as CoVoST writes it: separated by tabs, without quotes, with `\\` before special characters."""
    lines = StringIO(read_text(file, "table"), newline="")
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"Line {reader.line_num} of {file} has not as many fields as the first line.")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of {file} cannot be read ({error}).") from error
    return rows


def plain_rows(source: Source) -> Iterator[Row]:
    """Rows as the entry describes them."""
    entry = source.entry
    for group in source.groups():
        answers = source.answers(group)
        if not answers:
            continue
        values = group[0]
        others: Row = {ours: values[theirs] for ours, theirs in entry.copies.items()}
        if entry.grouped or entry.references:
            others["references"] = answers
        if entry.joined:
            others["expand_wav"] = [entry.joined.format(**values)]
        yield source.row(values, answers[0], **others)


def librimix_rows(source: Source) -> Iterator[Row]:
    """What both voices say, one a line, from the transcripts of LibriSpeech."""
    transcripts: dict[str, str] = {}
    for file in source.folder.glob(LIBRISPEECH_TRANSCRIPTS):
        for line in read_text(file, "file").splitlines():
            utterance, _, words = line.partition(" ")
            transcripts[utterance] = words
    for values in source.table():
        voices = values["text"].split("_")  # a mixture is named after its utterances
        unknown = [voice for voice in voices if voice not in transcripts]
        if unknown:
            raise ValueError(f"No {LIBRISPEECH_TRANSCRIPTS} in {source.folder} has {unknown}. {source.entry.access}")
        yield source.row(values, "\n".join(transcripts[voice] for voice in voices))


def slurp_rows(source: Source) -> Iterator[Row]:
    """Entities as slots, for each recording of an utterance; utterances without entities are left out."""
    for values in source.table():
        words = [token["surface"] for token in values["tokens"]]
        names: dict[str, None] = {}  # each once, in order
        references, filled = [], []
        for entity in values["entities"]:
            name, value = entity["type"].replace("_", " "), _join(words, entity["span"])
            names[name] = None
            references.append(value)
            filled.append(f"{name}: {value}")
        if not filled:
            source.left_out["without entities"] += len(values["recordings"])
            continue
        others = {"slots": ", ".join(names), "references": references, "transcript": values["transcript"]}
        text = ", ".join(filled)
        for recording in values["recordings"]:
            yield source.row({"clip": recording["file"]}, text, **others)


def _join(words: Sequence[str], span: Sequence[int]) -> str:
    return SPACE_WITHIN_WORD.sub("", " ".join(words[index] for index in span))


def inspec_rows(source: Source) -> Iterator[Row]:
    """Abstracts with the phrases that indexers chose, whether they occur in the abstract or not."""
    for values in source.table():
        phrases = [*(values["present"] or ()), *(values["absent"] or ())]
        if phrases:
            abstract = " ".join(values["document"])
            yield source.row(values, ", ".join(phrases), references=phrases, transcript=abstract)
        else:
            source.left_out["without phrases"] += 1


READERS: Mapping[str, Callable[[Source], Iterator[Row]]] = {
    "plain": plain_rows,
    "librimix": librimix_rows,
    "slurp": slurp_rows,
    "inspec": inspec_rows,
}


def _read_entries(file: Path) -> dict[str, PublicData]:
    table = yaml.safe_load(file.read_text(encoding="utf-8"))  # our own, which needs no checks
    return {name: PublicData(**entry) for name, entry in table.items()}


PUBLIC_DATA: Mapping[str, PublicData] = _read_entries(Path(__file__).with_name("public_data.yaml"))
