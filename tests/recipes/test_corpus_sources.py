"""The table of what a corpus is made of."""

import json
from pathlib import Path

import pytest

from recipes.salmonn_smol.corpus_sources import print_sources


def test_table_counts_clips_by_source_and_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"kind": "event", "source": "0ad-data", "licence": "CC-BY-SA-3.0", "label_origin": "file name"}
    other = row | {"source": "ion-sound", "licence": "MIT"}
    for split, rows in {"train": [row, row], "validation": [], "test": [other]}.items():
        (tmp_path / split).mkdir()
        lines = [json.dumps(entry | {"file_name": f"{index}.opus"}) for index, entry in enumerate(rows)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    print_sources(tmp_path)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| event | 0ad-data | Debian 0.0.26-1 | CC-BY-SA-3.0 | file name | 2 | 0 | 0 |",
        "| event | ion-sound | npm | MIT | file name | 0 | 0 | 1 |",
    ]
