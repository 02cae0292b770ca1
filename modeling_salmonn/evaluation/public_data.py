"""The public data sets of the paper's tasks (section 4) as rows, from the Hub or from folders.

`public_data.yaml` says where each of them is, which columns it has and how to get at its audio; what takes more than
other names for columns is here, one function for each. Rows have `path`, `task` and `text`, and where the task has
them `references` (all accepted texts), `language`, `question`, `slots`, `transcript` (what is said) and `expand_wav`.
Whatever is left out is counted and told.
"""

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
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
CLIP_SUFFIXES = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
LIBRISPEECH_TRANSCRIPTS = "LibriSpeech/test-clean/*/*/*.trans.txt"
PUNCTUATION_TAGS = {"<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"}
NON_SPEECH_TAGS = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
EMOTIONS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
LABEL_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t", re.MULTILINE)  # [start - end], utterance, class
TRIAL_LABELS = {"1": "Yes", "0": "No"}
SPACE_WITHIN_WORD = re.compile(r" (?='|n't\b)")  # tokens such as "what" and "'s"


@dataclass(frozen=True)
class PublicData:
    """An entry of `public_data.yaml`, which explains its fields."""

    files: str
    reader: str
    task: str
    licence: str
    access: str
    columns: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    clip: str | None = None
    language: str | None = None


@dataclass
class Source:
    """A data set that has been found.

    Args:
        name: of the data set.
        entry: what is known of it.
        files: what is read.
        folder: where its clips are.
        left_out: how many rows are left out, by reason.
        missing: names of clips that are not there.
    """

    name: str
    entry: PublicData
    files: Sequence[Path]
    folder: Path
    left_out: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def table(self) -> Iterator[Row]:
        """Rows of the files: the needed columns under our names, `None` where a row has nothing.

        Raises:
            ValueError: if a file cannot be read or lacks a column.
        """
        for file in self.files:
            if file.suffix in ARROW_SUFFIXES:
                yield from ({name: row.get(name) for name in self.entry.columns} for row in self._arrow_table(file))
                continue
            rows = read_tsv(file) if file.suffix == ".tsv" else read_manifest(file)
            self._check_columns(rows[0] if rows else (), file)
            yield from ({ours: row[theirs] for ours, theirs in self.entry.columns.items()} for row in rows)

    def row(self, values: Mapping[str, Any], text: str, **others: Any) -> Row:
        """A row of the harness made of a row of the table; its clip is not yet looked for."""
        path = self.clip(values) if self.entry.clip else values["path"]
        language = {"language": self.entry.language} if self.entry.language else {}
        return {"path": path, "task": self.entry.task, "text": text} | language | others

    def clip(self, values: Mapping[str, Any]) -> str:
        """Where the clip of a row of the table should be within the folder."""
        return (self.entry.clip or "").format(**values)

    def located_rows(self) -> Iterator[Row]:
        """Rows with clips that can be opened; the others are noted."""
        for row in self._read_rows():
            wanted = [row["path"], *row.get("expand_wav", ())]
            clips = [self._locate(clip) for clip in wanted]
            if None in clips:
                self.missing.append(str(wanted[clips.index(None)]))
            elif len(clips) > 1:
                yield row | {"path": clips[0], "expand_wav": clips[1:]}
            else:
                yield row | {"path": clips[0]}

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
        found = (self.folder / f"{clip}{suffix}" for suffix in CLIP_SUFFIXES)
        return next((str(path) for path in found if path.is_file()), None)

    def _arrow_table(self, file: Path) -> Iterable[Row]:
        columns = dict(self.entry.columns)
        try:
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


def load_public(name: str, folder: str | os.PathLike | None = None, most: int | None = None) -> list[Row]:
    """Rows of a public data set.

    Args:
        name: one of `PUBLIC_DATA`.
        folder: a copy of the data set's files in the same layout instead of the Hub's, and the clips where the Hub
            has none.
        most: only the first rows, so many of them; what is left out is counted up to there.

    Returns:
        Rows as described above; those that the Hub's files have the audio of hold it in memory.

    Raises:
        ValueError: for an unknown name, a folder that is needed or missing, files that cannot be had or have other
            columns, and if no row is left.
    """
    source = open_source(name, folder)
    rows = list(islice(source.located_rows(), most))
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
    """Rows as they are: LibriSpeech, CoVoST."""
    for values in source.table():
        said = {"transcript": values["transcript"]} if "transcript" in source.entry.columns else {}
        yield source.row(values, values["text"], **said)


def gigaspeech_rows(source: Source) -> Iterator[Row]:
    """Words without the tags for punctuation; segments that are nothing but tags are left out."""
    for values in source.table():
        words = [word for word in values["text"].split() if word.upper() not in PUNCTUATION_TAGS | NON_SPEECH_TAGS]
        if words:
            yield source.row(values, " ".join(words))
        else:
            source.left_out["without words"] += 1


def grouped_caption_rows(source: Source) -> Iterator[Row]:
    """One row for all captions of a clip, which are rows of their own in AudioCaps."""
    for group in grouped(source):
        captions = [values["text"] for values in group]
        yield source.row(group[0], captions[0], references=captions)


def grouped(source: Source) -> list[list[Row]]:
    """Rows of the table by their clips."""
    groups = defaultdict(list)
    for values in source.table():
        groups[source.clip(values)].append(values)
    return list(groups.values())


def clotho_rows(source: Source) -> Iterator[Row]:
    """The five captions of a clip, which are columns in Clotho."""
    for values in source.table():
        captions = [values[name] for name in ("text", "second", "third", "fourth", "fifth")]
        yield source.row(values, captions[0], references=[caption for caption in captions if caption])


def musiccaps_rows(source: Source) -> Iterator[Row]:
    """Captions of the clips that are for testing."""
    for values in source.table():
        if str(values["evaluation"]).lower() == "true":
            yield source.row(values, values["text"])
        else:
            source.left_out["that are for training"] += 1


def iemocap_rows(source: Source) -> Iterator[Row]:
    """Utterances of the four usual classes, excitement being taken for happiness; the others are left out."""
    for file in source.files:
        labels = LABEL_LINE.findall(file.read_text(encoding="latin-1"))  # remarks of raters may have any bytes
        if not labels:
            raise ValueError(f"{file} has no lines of the form '[start - end] <tab> utterance <tab> class <tab> ...'.")
        for utterance, label in labels:
            if label in EMOTIONS:
                yield source.row({"dialog": file.stem, "clip": utterance}, EMOTIONS[label])
            else:
                source.left_out[f"of the class {label!r}"] += 1


def librimix_rows(source: Source) -> Iterator[Row]:
    """What both voices say, one a line, from the transcripts of LibriSpeech."""
    transcripts: dict[str, str] = {}
    for file in source.folder.glob(LIBRISPEECH_TRANSCRIPTS):
        transcripts |= (line.partition(" ")[::2] for line in read_text(file, "file").splitlines())
    for values in source.table():
        voices = values["text"].split("_")
        unknown = [voice for voice in voices if voice not in transcripts]
        if unknown:
            raise ValueError(f"No {LIBRISPEECH_TRANSCRIPTS} in {source.folder} has {unknown}. {source.entry.access}")
        yield source.row(values, "\n".join(transcripts[voice] for voice in voices))


def voxceleb_rows(source: Source) -> Iterator[Row]:
    """Pairs of utterances, and whether one speaker says both."""
    for file in source.files:
        for number, line in enumerate(read_text(file, "file").splitlines(), start=1):
            parts = line.split()
            if len(parts) != 3 or parts[0] not in TRIAL_LABELS:
                raise ValueError(
                    f"Line {number} of {file} is {line!r}; it needs to be '1 PATH PATH' or '0 PATH PATH'."
                )
            label, first, second = parts
            yield source.row({"clip": first}, TRIAL_LABELS[label], expand_wav=[source.clip({"clip": second})])


def slurp_rows(source: Source) -> Iterator[Row]:
    """Entities as slots, for each recording of an utterance; utterances without entities are left out."""
    for values in source.table():
        words = [token["surface"] for token in values["tokens"]]
        slots = [(entity["type"].replace("_", " "), _join(words, entity["span"])) for entity in values["entities"]]
        if not slots:
            source.left_out["without entities"] += len(values["recordings"])
            continue
        others = {"slots": ", ".join(dict(slots)), "references": [value for _, value in slots]}
        others["transcript"] = values["transcript"]
        text = ", ".join(f"{slot}: {value}" for slot, value in slots)
        yield from (source.row({"clip": one["file"]}, text, **others) for one in values["recordings"])


def _join(words: Sequence[str], span: Sequence[int]) -> str:
    return SPACE_WITHIN_WORD.sub("", " ".join(words[index] for index in span))


def wiki_qa_rows(source: Source) -> Iterator[Row]:
    """Questions with their right answers; questions without any are left out."""
    for group in grouped(source):
        answers = [values["text"] for values in group if values["label"] == 1]
        question = group[0]["question"]
        if answers:
            yield source.row(group[0], answers[0], references=answers, question=question, transcript=question)
        else:
            source.left_out["without a right answer"] += 1


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
    "gigaspeech": gigaspeech_rows,
    "grouped_captions": grouped_caption_rows,
    "clotho": clotho_rows,
    "musiccaps": musiccaps_rows,
    "iemocap": iemocap_rows,
    "librimix": librimix_rows,
    "voxceleb": voxceleb_rows,
    "slurp": slurp_rows,
    "wiki_qa": wiki_qa_rows,
    "inspec": inspec_rows,
}


def _read_entries(file: Path) -> dict[str, PublicData]:
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: PublicData(**entry) for name, entry in table.items()}


PUBLIC_DATA: Mapping[str, PublicData] = _read_entries(Path(__file__).with_name("public_data.yaml"))
