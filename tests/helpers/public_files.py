"""Files with the columns and folders of public data sets."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import soundfile
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.public_data import load_public


CLIP_SECONDS = 0.1


def read(name: str, folder: Path | None = None) -> list[Row]:
    """Rows of a data set whose clips can be read."""
    rows = load_public(name, folder)
    extractor = SalmonnFeatureExtractor()
    for row in rows:
        for clip in (row["path"], *row.get("expand_wav", ())):
            assert len(extractor.fetch_audio(clip)) == CLIP_SECONDS * SAMPLING_RATE
    return rows


def text_of(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def write_clips(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, make_clip(CLIP_SECONDS, seed=seed), SAMPLING_RATE)


def write_parquet(file: Path, rows: list[Row], **features: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        table = table.cast_column(column, feature)
    table.to_parquet(file)


def write_csv(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(file: Path, rows: list[Row]) -> None:
    text_of(file, "".join(json.dumps(row) + "\n" for row in rows))


def audio(name: str) -> dict[str, Any]:
    """A clip as the Hub's Parquet files hold it."""
    content = io.BytesIO()
    soundfile.write(content, make_clip(CLIP_SECONDS), SAMPLING_RATE, format="FLAC")
    return {"bytes": content.getvalue(), "path": name}


def write_librispeech(file: Path, *texts: str) -> None:
    rows = [
        {
            "file": f"{n}.flac",
            "audio": audio(f"{n}.flac"),
            "text": text,
            "speaker_id": 61,
            "chapter_id": 7,
            "id": str(n),
        }
        for n, text in enumerate(texts)
    ]
    write_parquet(file, rows, audio=datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False))


def hub_file(tmp_path: Path, repository: str, name: str) -> Path:
    """Where the cache of the Hub has a file of a data set."""
    cached = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
    text_of(cached / "refs" / "main", "f00d")
    return cached / "snapshots" / "f00d" / name
