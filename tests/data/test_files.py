"""Files that survive an interruption and are whole or not there, and folders that are ours."""

import json
from pathlib import Path

import pytest

from modeling_salmonn.data.files import (
    Journal,
    claim_folder,
    make_output_folder,
    read_record,
    rename_folder,
    replaced_whole,
    write_bytes,
    write_json,
    write_rows,
)


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


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    with replaced_whole(file) as first:
        first.write_bytes(b"half of the fi")
        write_bytes(file, b"second")
        assert first.read_bytes() == b"half of the fi"
        first.write_bytes(b"first")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_bytes(file, b"old")

    def write_half() -> None:
        with replaced_whole(file) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_folder_that_another_process_has_made_meanwhile_is_kept(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    rename_folder(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "file").read_text() == "theirs"
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken"):
        rename_folder(tmp_path / "mine", tmp_path / "taken")


RECORD = {"seed": 0, "settings": {"steps": 3, "sizes": (1, 2)}}


def test_folder_is_made_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "output"
    assert claim_folder(folder, "settings.json", RECORD, ["answers-*.jsonl"]) == RECORD
    (folder / "answers-0.jsonl").touch()
    write_json(folder / "settings.json", RECORD | {"finished": True})
    assert claim_folder(folder, "settings.json", RECORD, ["answers-*.jsonl"])["finished"]
    (tmp_path / "notes.txt").touch()
    claim_folder(tmp_path, "settings.json", RECORD, ["answers-*.jsonl"])  # nothing would be overwritten


def test_folder_of_another_record_raises_with_what_differs(tmp_path: Path) -> None:
    claim_folder(tmp_path, "settings.json", RECORD)
    other = RECORD | {"settings": {"steps": 4, "sizes": [1, 2]}, "data": "abc"}
    message = r"other settings: steps 3 instead of 4, data None instead of 'abc'; choose another folder, or delete"
    with pytest.raises(ValueError, match=message):
        claim_folder(tmp_path, "settings.json", other)


def test_folder_with_files_of_others_raises(tmp_path: Path) -> None:
    (tmp_path / "answers-3.jsonl").write_text("mine")
    message = r"has answers-3\.jsonl, but no settings\.json: they are of something else"
    with pytest.raises(ValueError, match=message):
        claim_folder(tmp_path, "settings.json", RECORD, ["answers-*.jsonl", "summary.json"])
    assert not (tmp_path / "settings.json").exists()


def test_damaged_record_raises(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"settings\.json holds a list.*; choose another folder, or delete this one"):
        claim_folder(tmp_path, "settings.json", RECORD)


def test_record_of_a_file_is_read_if_it_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    assert read_record(file, RECORD, "delete it") is None
    write_json(file, RECORD | {"losses": [1.0]})
    assert read_record(file, RECORD, "delete it") == json.loads(file.read_text())
    assert read_record(file, RECORD | {"seed": 1}, "delete it") is None


def test_what_is_no_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "file", "file is no folder; give one to write to"),
        (tmp_path / "file" / "below", "below cannot be made .*; give another one"),
        (Path("/dev/null"), "/dev/null is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            make_output_folder(path)
