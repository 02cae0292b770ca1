"""Where training data comes from, as arguments and recipes name it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from modeling_salmonn.data.text_files import shown


@dataclass(frozen=True)
class DataSource:
    """Where rows come from.

    Args:
        path: `.jsonl`, `.json`, `.csv` or `.parquet` file, audio folder (with `metadata.jsonl` or its like, whose
            `file_name` is the clip), or Hub id.
        task: task of the rows that name none.
        columns: our name of a column to its name in the source, such as `{text: transcription}`.
        split: split of a Hub data set, or folder within an audio folder.
        name: configuration of a Hub data set.
        streaming: read rows one after the other instead of all of them first.
        audio_root: folder that relative audio paths start from; the manifest's own if not given.
    """

    path: str
    task: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    name: str | None = None
    streaming: bool = False
    audio_root: str | None = None


def parse_sources(value: Any, audio_root: str | None = None) -> list[DataSource]:
    """Data sources as the arguments have them: one or a list, each a path or a mapping of `DataSource`'s fields.

    Raises:
        ValueError: for a mapping without `path`, or with unknown fields or values of other types.
    """
    sources = []
    for item in value if isinstance(value, list) else [value]:
        given = dict(item) if isinstance(item, Mapping) else {"path": item}
        known = {entry.name for entry in fields(DataSource)}
        if "path" not in given or not given.keys() <= known:
            raise ValueError(f"The data source {item!r} needs 'path', and knows nothing but {sorted(known)}.")
        _check_source(given)
        source = DataSource(**given)
        root = source.audio_root or audio_root
        path = os.path.expanduser(source.path)
        sources.append(replace(source, path=path, audio_root=os.path.expanduser(root) if root else None))
    return sources


def _check_source(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name == "streaming":
            fits, needed = isinstance(value, bool), "true or false"
        elif name == "columns":
            fits = isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)
            needed = "a mapping of our names of columns to the source's"
        else:
            optional = name in ("task", "name", "audio_root")
            fits, needed = (isinstance(value, str) and bool(value)) or (value is None and optional), "text"
        if not fits:
            raise ValueError(f"The data source {shown(given)} has {shown(value)} as {name}; it needs {needed}.")


__all__ = ["DataSource", "parse_sources"]
