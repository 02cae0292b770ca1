"""The corpus of salmonn-smol, gathered from Hub data sets and audio folders as `sources.yaml` lists them.

```
CORPUS/esc50/000017.opus, metadata.jsonl    the clips of a Hub data set
       train/metadata.jsonl, validation, test    the rows of all sources; clips of folders stay where they are
```
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_salmonn.data.coercion import coerce
from modeling_salmonn.data.files import write_rows
from modeling_salmonn.data.rows import Row, row_seconds
from modeling_salmonn.data.sources import DataSource
from modeling_salmonn.data.tables import load_dataset
from modeling_salmonn.data.text_files import read_yaml_mapping
from recipes.salmonn_smol.arguments import Folder
from recipes.salmonn_smol.audiofolder import METADATA_FILE, MadeClip, read_audiofolder, write_audiofolder
from recipes.salmonn_smol.waveforms import read_clip


SPLITS = ("train", "validation", "test")
KINDS = ("speech", "event", "music")
READ_BY = ("path", "name", "split", "columns", "keep", "every")  # what the clips of a Hub data set follow from
NEEDED = ("text", "licence", "seconds")  # of every row


@dataclass(frozen=True)
class ClipSource:
    """An entry of `sources.yaml`, which explains its fields.

    Raises:
        ValueError: for a split or a kind that there is not, or a Hub data set without `kind` or `limit`.
    """

    path: str
    into: str
    kind: str | None = None
    name: str | None = None
    split: str = "train"
    streaming: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    keep: dict[str, list[Any]] = field(default_factory=dict)
    every: int = 1
    limit: int | None = None
    row: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.into not in SPLITS or (self.kind or KINDS[0]) not in KINDS:
            raise ValueError(f"{self.path}: `into` is one of {SPLITS} and `kind` one of {KINDS}.")
        if not self.is_folder and (self.kind is None or self.limit is None):
            raise ValueError(f"{self.path} is no folder here; a Hub data set needs `kind` and `limit`.")

    @property
    def is_folder(self) -> bool:
        """Whether it is an audio folder, and no Hub data set."""
        return Path(self.path).expanduser().is_dir()

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the values that are wanted."""
        return all(row.get(name) in wanted for name, wanted in self.keep.items())

    def located(self, folder: Path) -> list[Row]:
        """The wanted rows of an audio folder, which say what they are and where their clip lies."""
        common = self.row | ({"kind": self.kind} if self.kind else {})
        found = islice(filter(self.keeps, read_audiofolder(folder)), self.limit)
        own = [row | {"file_name": row["path"], "seconds": row_seconds(row)} for row in found]
        return [_checked({"source": self.path} | row | common) for row in own]


def _checked(row: Row) -> Row:
    """A row, unless later commands could not use it."""
    if row.get("kind") not in KINDS:
        raise ValueError(f"{row['path']} has the kind {row.get('kind')!r}; give its source a `kind`.")
    needed = [*NEEDED, *(["instrument"] if row["kind"] == "music" and not row.get("tags") else [])]
    if lacking := [name for name in needed if row.get(name) is None]:
        raise ValueError(f"{row['path']} has no {', '.join(lacking)}; add it, or give its source a `row` with it.")
    return row


class HubClips:
    """Makes the clips of a Hub data set by their numbers, `000017.opus`, which only go up: the data are a stream.

    Args:
        source: the data set.
    """

    def __init__(self, source: ClipSource):
        self.source = source
        self.rows = self._read()
        self.position = 0  # of the row that comes next

    def names(self) -> list[str]:
        """As many as there may be."""
        return [f"{index:06d}.opus" for index in range(self.source.limit or 0)]

    def __call__(self, name: str) -> MadeClip | None:
        """The clip of a name; `None` if the data set ends before."""
        index = int(Path(name).stem)
        row = next(islice(self.rows, index - self.position, None), None)
        self.position = index + 1
        if row is None:
            return None
        others = {key: value for key, value in row.items() if not isinstance(value, Mapping)}
        return MadeClip(read_clip(row["audio"]), others)

    def _read(self) -> Iterator[Row]:
        source = self.source
        table = load_dataset(DataSource(source.path, name=source.name, split=source.split, streaming=source.streaming))
        for row in islice(filter(source.keeps, table), 0, None, source.every):
            own = {"text": "", **row, **{ours: row[theirs] for ours, theirs in source.columns.items()}}
            own |= {name: str(own[name]).replace("_", " ") for name in ("text", "sound_class") if name in own}
            if "speaker" in own:  # a number means another person elsewhere
                own["speaker"] = f"{source.path}:{own['speaker']}"
            yield own | {"source": source.path}


def read_sources(file: Path) -> dict[str, ClipSource]:
    """The entries of a file like `sources.yaml`.

    Raises:
        ValueError: if it cannot be read, or an entry has unknown fields or values of other types.
    """
    entries, _ = read_yaml_mapping(file, "list of sources", "map names to sources")
    known = {entry.name: entry.type for entry in fields(ClipSource)}
    sources = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"path", "into"} <= entry.keys() <= known.keys():
            raise ValueError(f"{name} in {file} needs `path` and `into`, and may have {sorted(known)} alone.")
        for key, value in entry.items():
            coerce(f"{key} of {name} in {file}", value, known[key])
        sources[str(name)] = ClipSource(**entry)
    return sources


def gather_rows(sources: Mapping[str, ClipSource], corpus: Path) -> dict[str, list[Row]]:
    """The rows of all sources by split; the clips of Hub data sets are written first."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for name, source in sources.items():
        folder = Path(source.path).expanduser()
        if not source.is_folder:
            folder = corpus / name
            clips = HubClips(source)
            write_audiofolder(folder, clips.names(), clips, {part: getattr(source, part) for part in READ_BY})
        splits[source.into] += source.located(folder)
    return splits


def collect(
    sources: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A list like sources.yaml.")],
    folder: Folder,
) -> None:
    """Gather the clips of Hub data sets and audio folders as a corpus: train, validation and test."""
    for split, rows in gather_rows(read_sources(sources), folder).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_rows(folder / split / METADATA_FILE, rows)
        typer.echo(f"{split}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 3600:.1f} h")
