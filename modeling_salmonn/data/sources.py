"""Where rows come from, as arguments and recipes name it, and where their clips are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from modeling_salmonn.data.coercion import coerce
from modeling_salmonn.data.text_files import shown


METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an audio folder


@dataclass(frozen=True)
class DataSource:
    """Where rows come from; values of other types are refused by a `ValueError`.

    The path is a `.jsonl`, `.json`, `.csv` or `.parquet` file, an audio folder (with `metadata.jsonl` or its like,
    whose `file_name` is the clip), or a Hub id.
    """

    path: str
    task: str | None = None  # of the rows that name none
    columns: dict[str, str] = field(default_factory=dict)  # our names to the source's: {text: transcription}
    split: str = "train"  # of a Hub data set, or folder within an audio folder
    name: str | None = None  # configuration of a Hub data set
    streaming: bool = False  # read rows one after the other instead of all of them first
    audio_root: str | None = None  # where relative audio paths start; the manifest's folder if not given

    def __post_init__(self) -> None:
        # They come from YAML and from the command line, which know no types.
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            coerce(f"{name} of the data source {shown(self.path)}", value, hint)
            if value == "":
                raise ValueError(f"{name} of the data source {shown(self.path)} is empty; give it, or leave it out.")

    @cached_property
    def clip_folder(self) -> str:
        """The folder that relative paths of clips start from."""
        return self.audio_root or (os.path.dirname(self.path) if os.path.isfile(self.path) else "")


def parse_sources(value: Any, audio_root: str | None = None) -> list[DataSource]:
    """Data sources as arguments have them: one or several, each a path, a mapping of `DataSource`'s fields, or one.

    Those without a root of their own get `audio_root`; a `ValueError` for what is none.
    """
    sources = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        source = item if isinstance(item, DataSource) else _parse_source(item)
        root = source.audio_root or audio_root
        path = os.path.expanduser(source.path)
        sources.append(replace(source, path=path, audio_root=os.path.expanduser(root) if root else None))
    return sources


def open_folder(source: DataSource) -> DataSource:
    """The metadata file of an audio folder, which needs one; other sources as they are."""
    path = Path(source.path)
    if path.is_dir():
        files = [folder / name for folder in (path, path / source.split) for name in METADATA_FILES]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise ValueError(f"{path} is no audio folder: it has none of {METADATA_FILES}, which name its clips.")
        source, path = replace(source, path=str(found)), found
    if path.name in METADATA_FILES:  # in which the Hub's audio folders call a clip so
        source = replace(source, columns={"path": "file_name", **source.columns})
    return source


def locate_clip(path: str, folder: str | os.PathLike) -> str:
    """The absolute path of a clip whose relative path starts from a folder; URLs as they are."""
    return path if "://" in path else str(Path(folder, path).absolute())  # an absolute one drops the folder


def _parse_source(item: Any) -> DataSource:
    given = dict(item) if isinstance(item, Mapping) else {"path": item}
    known = {entry.name for entry in fields(DataSource)}
    if "path" not in given or not given.keys() <= known:
        raise ValueError(f"The data source {item!r} needs 'path', and knows nothing but {sorted(known)}.")
    return DataSource(**given)
