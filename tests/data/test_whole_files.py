"""Files that are whole or not there, whoever else writes them, and folders that are ours."""

from pathlib import Path

import pytest

from modeling_salmonn.data.whole_files import make_output_folder, rename_folder, replaced_whole, write_bytes


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


def test_output_folder_is_made_and_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "output"
    for _ in range(2):
        make_output_folder(folder, "settings.json", ["answers-*.jsonl"])
        (folder / "settings.json").touch()
        (folder / "answers-0.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    make_output_folder(tmp_path, "settings.json", ["answers-*.jsonl"])  # nothing would be overwritten


def test_folder_with_files_of_others_raises(tmp_path: Path) -> None:
    (tmp_path / "answers-3.jsonl").write_text("mine")
    message = r"has answers-3\.jsonl, but no settings\.json: they are of something else"
    with pytest.raises(ValueError, match=message):
        make_output_folder(tmp_path, "settings.json", ["answers-*.jsonl", "summary.json"])


def test_what_is_no_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "file", "file is no folder; give one to write to"),
        (tmp_path / "file" / "below", "below cannot be made .*; give another one"),
        (Path("/dev/null"), "/dev/null is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            make_output_folder(path)
