"""Where pictures may be written: to the names of pictures, and never over what is none."""

from pathlib import Path

import pytest

from modeling_salmonn.data.pictures import PICTURE_FORMATS, require_picture_path, save_figure
from modeling_salmonn.studies.plots import make_panels


@pytest.mark.parametrize("suffix", [*PICTURE_FORMATS, ".PNG"])
def test_picture_is_written_in_the_format_of_its_name_and_over_itself(suffix: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / f"figure{suffix}"
    for width in (1.0, 2.0):
        figure, _ = make_panels(1, 1, width, 1.0)
        save_figure(figure, picture)
    assert picture.stat().st_size > 0
    assert require_picture_path(picture) == picture
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml", ".webp": b"RIFF"}
    assert picture.read_bytes().startswith(starts.get(suffix.lower(), b""))
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]


@pytest.mark.parametrize("name", ["clip.wav", "notes.txt", "model.safetensors", "nothing", ".png", "/dev/null"])
def test_name_of_no_picture_raises(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no name for a picture"):
        require_picture_path(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"RIFF\x24\x00\x00\x00WAVEfmt ", b"my notes", b"{}", b"<html><body></body></html>"]
)
def test_file_that_is_no_picture_is_not_overwritten(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(content)
    figure, _ = make_panels(1, 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="holds something else than a picture, which would be lost"):
        save_figure(figure, file)
    assert file.read_bytes() == content


def test_link_to_a_file_that_is_no_picture_raises(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds something else than a picture"):
        require_picture_path(tmp_path / "link.png")


def test_folder_and_device_raise(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png is a folder or a device, not a file"):
        require_picture_path(tmp_path / "folder.png")
    (tmp_path / "device.png").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"device\.png is a folder or a device, not a file"):
        require_picture_path(tmp_path / "device.png")


def test_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is no folder, so that .* cannot be written"):
        require_picture_path(tmp_path / "file" / "figure.png")


def test_empty_file_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert require_picture_path(str(tmp_path / "empty.png")) == tmp_path / "empty.png"
