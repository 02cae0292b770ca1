"""Files that survive an interruption."""

import json
from pathlib import Path

import pytest

from modeling_salmonn.data.journal import Journal, write_json, write_rows


ROW = {"path": "a.wav", "attempt": 0, "text": "\u00e9t\u00e9 \u2028 line"}


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append(ROW)
    journal.append(ROW | {"attempt": 1})
    assert Journal(tmp_path / "rows.jsonl").rows == journal.rows == [ROW, ROW | {"attempt": 1}]
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 2


def test_row_with_known_keys_is_not_added_again(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.jsonl").append(ROW)
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append(ROW | {"text": "other"})
    assert Journal(tmp_path / "rows.jsonl").rows == [ROW]


@pytest.mark.parametrize("kept_bytes", [1, 20, -3])
def test_line_that_was_cut_off_is_dropped(kept_bytes: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps(ROW, ensure_ascii=False).encode()
    file.write_bytes(line + b"\n" + line[:kept_bytes])
    journal = Journal(file)
    assert journal.rows == [ROW]
    journal.append(ROW | {"attempt": 1})
    assert [json.loads(text)["attempt"] for text in file.read_bytes().split(b"\n")[:-1]] == [0, 1]


def test_last_line_without_line_end_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW))
    Journal(file).append(ROW | {"attempt": 1})
    assert [row["attempt"] for row in Journal(file).rows] == [0, 1]


@pytest.mark.parametrize(("line", "message"), [("{oops}", "Line 1 of .* is not JSON"), ("[1]", "Line 1 .* is a list")])
def test_line_that_is_no_row_raises(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{json.dumps(ROW)}\n")
    with pytest.raises(ValueError, match=message):
        Journal(tmp_path / "rows.jsonl")


def test_file_keeps_its_old_content_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"b": 2, "a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    write_rows(file, [{"a": 3}, {"a": 4}])
    assert file.read_text() == '{"a": 3}\n{"a": 4}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_reading_leaves_a_line_that_was_cut_off(tmp_path: Path) -> None:
    """Others may be appending to the file just now."""
    file = tmp_path / "rows.jsonl"
    content = json.dumps(ROW).encode() + b'\n{"path": '
    file.write_bytes(content)
    assert Journal(file).rows == [ROW]
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"path": "a", "attempt": 1, "path": "b"}',
            "Line 2 of .* is not JSON .*'path' is given twice.*mend or delete",
        ),
        (b"[" * 100_000, "Line 2 of .* is not JSON .*levels of nesting"),
        (b'{"path": "\xe9"}', "Line 2 of .* is not UTF-8; mend or delete it"),
        (b'{"path": ["a"]}', "Line 2 of .* has a list as 'path'; mend or delete it"),
        (b'{"path": "a", "attempt": "1"}', "Line 2 of .* has text as 'attempt'; mend or delete it"),
        (b'{"path": "a", "attempt": true}', "Line 2 of .* has true or false as 'attempt'; mend or delete it"),
        (b'{"path": "a"}', "Line 2 of .* has nothing as 'attempt'; mend or delete it"),
        (b"null", "Line 2 of .* is nothing; it needs to be an object"),
    ],
    ids=range(8),
)
def test_line_with_a_mistake_raises(line: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(ROW).encode() + b"\r\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        Journal(file, needed={"path": str, "attempt": int})
