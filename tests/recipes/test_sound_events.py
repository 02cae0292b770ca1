"""Sound events: files of packages and effects of soundfonts become balanced, captioned clips."""

import gzip
import io
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.salmonn_smol import sound_events, sound_packages
from recipes.salmonn_smol.sound_captions import CLASS_PHRASES, names_class
from recipes.salmonn_smol.sound_effects import EFFECTS, Effect
from recipes.salmonn_smol.sound_events import collect_sounds, plan_events
from recipes.salmonn_smol.sound_packages import (
    SOUND_PACKAGES,
    archived_sounds,
    download_package,
    find_rule,
    sounds_within,
)
from recipes.salmonn_smol.soundfonts import require_soundfonts


FONT = "TimGM6mb"
try:
    require_soundfonts([FONT])
    MISSING = ""
except FileNotFoundError as error:
    MISSING = str(error)
TEST_SOURCES = ("opensfx", "gcompris", "libreoffice", "ion-sound", "unknown-horizons", "asterisk")
APPLAUSE = Effect("applause or crowd", "a crowd giving applause", 0, 126, (FONT,), seconds=(0.5, 1.0))


def wave_bytes(pitch: float = 440.0, seconds: float = 0.5) -> bytes:
    """A WAVE file with a tone."""
    time = np.arange(round(22_050 * seconds)) / 22_050
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * pitch * time), 22_050, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Package folders as they are after fetching, with three sounds, two of them the same."""
    folder = tmp_path / "packages"
    for package in SOUND_PACKAGES:
        (folder / package).mkdir(parents=True)
    (folder / "scorched3d-data" / "data%apoc%misc%dog.wav").write_bytes(wave_bytes(300))
    (folder / "scorched3d-data" / "data%apoc%misc%dog2.wav").write_bytes(wave_bytes(300))
    (folder / "7kaa-data" / "sound%rain.wav").write_bytes(wave_bytes(600))
    return folder


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "present")
def test_collect_sounds_writes_captioned_clips(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_events, "EFFECTS", (APPLAUSE,))
    rows = collect_sounds(tmp_path / "events", packages=packages, limit=2)

    assert [row["sound_class"] for row in rows].count("dog or wolf") == 2
    assert {row["sound_class"] for row in rows} == {"dog or wolf", "rain", "applause or crowd"}
    for row in rows:
        audio, rate = soundfile.read(tmp_path / "events" / row["file_name"])
        assert rate == 16_000
        assert len(audio) >= 0.3 * rate
        assert np.abs(audio).max() > 0.1
        assert names_class(row["text"], row["sound_class"])
        assert row["licence"]


def test_collect_sounds_resumes_after_a_row_was_cut_off(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_events, "EFFECTS", ())
    folder = tmp_path / "events"
    rows = collect_sounds(folder, packages=packages, limit=3)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([lines[0], lines[1][:40]]))
    written = (folder / rows[0]["file_name"]).stat().st_mtime_ns

    assert collect_sounds(folder, packages=packages, limit=3) == rows
    assert (folder / rows[0]["file_name"]).stat().st_mtime_ns == written


def test_plan_takes_a_sound_that_two_files_share_once(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_events, "EFFECTS", ())
    sources = {source.name for source in plan_events(packages, 1, 5).values() if source.sound_class == "dog or wolf"}

    assert len(sources) == 1


def test_no_package_is_one_that_test_sounds_come_from() -> None:
    assert not [package for package in SOUND_PACKAGES if any(name in package for name in TEST_SOURCES)]


def test_every_rule_and_effect_names_its_class() -> None:
    named = [(effect.sound_class, effect.phrase) for effect in EFFECTS]
    for package in SOUND_PACKAGES.values():
        named += [(sound_class, phrase) for _, sound_class, phrase in package["rules"] if phrase]
    for sound_class, phrase in named:
        if sound_class is not None:
            assert sound_class in CLASS_PHRASES
            assert names_class(phrase, sound_class), (sound_class, phrase)


def test_find_rule_takes_the_first_that_fits_and_fills_in_the_word() -> None:
    rules = SOUND_PACKAGES["tuxpaint-stamps-default"]["rules"]

    assert find_rule("animals/birds/crow.ogg", rules) == ("bird", "a bird: a crow")
    assert find_rule("animals/birds/crow_desc_fr.ogg", rules) is None
    assert find_rule("clothes/hat.ogg", rules) is None


def test_sounds_within_opens_zip_files() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("sounds/Wind.wav", wave_bytes())
        archive.writestr("readme.txt", "text")

    assert [name for name, _ in sounds_within("data.zip", buffer.getvalue())] == ["data.zip/sounds/wind.wav"]


def test_sounds_within_opens_nested_group_files() -> None:
    inner = group_file([("Rain.wav", False, b"rain")])
    data = gzip.compress(group_file([("Liquids.ocg", True, inner), ("Version.txt", False, b"9")]))

    assert list(sounds_within("sound.ocg", b"\x1e\x8c" + data[2:])) == [("sound.ocg/liquids.ocg/rain.wav", b"rain")]


def group_file(entries: list[tuple[str, bool, bytes]]) -> bytes:
    """An OpenClonk group file: scrambled header, entries, data."""
    header = bytearray(204)
    header[36:40] = struct.pack("<I", len(entries))
    for i in range(0, 202, 3):
        header[i], header[i + 2] = header[i + 2], header[i]
    table, body = b"", b""
    for name, is_group, data in entries:
        table += name.encode().ljust(260, b"\0") + struct.pack("<5I", 1, is_group, len(data), 0, len(body))
        table += bytes(316 - 280)
        body += data
    return bytes(byte ^ 237 for byte in header) + table + body


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_archived_sounds_reads_a_debian_package(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: tiny\n"
    )
    (root / "usr").mkdir()
    (root / "usr" / "Rain.WAV").write_bytes(b"rain")
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "tiny.deb")], check=True, capture_output=True)

    assert list(archived_sounds(tmp_path / "tiny.deb")) == [("./usr/rain.wav", b"rain")]


def test_download_package_without_apt_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sound_packages.shutil, "which", lambda tool: None)

    with pytest.raises(FileNotFoundError, match="7kaa-data needs apt-get and dpkg-deb"):
        download_package("7kaa-data", tmp_path)
