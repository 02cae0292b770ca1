"""Sound files out of Debian packages: fetched, unpacked and kept in a folder.

- `apt-get download` fetches a package without installing it; only the sounds that a rule names are kept
- archives inside a package are opened too: zip files, and the group files of OpenClonk
"""

import io
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from modeling_salmonn.data.files import rename_folder
from recipes.salmonn_smol.sound_captions import fill_phrase
from recipes.salmonn_smol.tables import read_table


SOUND_PACKAGES: dict[str, dict[str, Any]] = read_table("sound_packages")["packages"]
SOUND_SUFFIXES = (".wav", ".ogg", ".oga", ".flac")
ZIP_SUFFIXES = (".zip", ".wz")
GROUP_SUFFIX = ".ocg"
# OpenClonk group files: a scrambled header, a table of entries, the data. All numbers are little-endian.
GROUP_HEADER_BYTES, GROUP_ENTRY_BYTES, GROUP_NAME_BYTES = 204, 316, 260
GROUP_KEY, GROUP_COUNT_OFFSET = 237, 36

File = tuple[str, bytes]
Rule = Sequence[Any]  # pattern, class or nothing, phrase


def fetch_sounds(package: str, cache: Path) -> Path:
    """The folder with a package's sounds, fetched if it is not there.

    Args:
        package (`str`): A package of `SOUND_PACKAGES`.
        cache (`Path`): Where the folders of packages are kept.

    Raises:
        FileNotFoundError: If apt-get or dpkg-deb is missing, or apt does not know the package.
    """
    folder = cache / package
    if folder.exists():
        return folder
    rules = SOUND_PACKAGES[package]["rules"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as download, tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
        unfinished = Path(scratch, package)
        unfinished.mkdir()
        for name, data in archived_sounds(download_package(package, Path(download))):
            if find_rule(name, rules) is not None:
                (unfinished / flat_name(name)).write_bytes(data)
        rename_folder(unfinished, folder)
    return folder


def fetch_all(cache: Path) -> None:
    """Fetch the sounds of all packages."""
    for package in track(sorted(SOUND_PACKAGES), description="Packages"):
        fetch_sounds(package, cache)


def download_package(package: str, folder: Path) -> Path:
    """Fetch a package file into a folder."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise FileNotFoundError(
            f"Fetching {package} needs {' and '.join(missing)}: run this on Debian or a derivative."
        )
    command = ["apt-get", "download", "-q", package]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.deb"))
    if result.returncode or not files:
        message = result.stderr.strip()[-300:]
        raise FileNotFoundError(f"Could not fetch the Debian package {package}; run apt-get update first. {message}")
    return files[0]


def archived_sounds(package_file: Path) -> Iterator[File]:
    """Path and content of each sound of a package, also of those within archives."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package_file)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            data = archive.extractfile(member) if member.isfile() else None
            if data is not None:
                yield from sounds_within(member.name.lower(), data.read())


def sounds_within(name: str, data: bytes) -> Iterator[File]:
    """The file itself if it is a sound, or the sounds in it if it is an archive."""
    suffix = Path(name).suffix
    if suffix in SOUND_SUFFIXES:
        yield name, data
    elif suffix in ZIP_SUFFIXES:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                if Path(inner.lower()).suffix in SOUND_SUFFIXES:
                    yield f"{name}/{inner.lower()}", archive.read(inner)
    elif suffix == GROUP_SUFFIX:
        yield from group_sounds(name, data)


def group_sounds(name: str, data: bytes) -> Iterator[File]:
    """The sounds of an OpenClonk group file, and of the groups in it."""
    if data[:2] == b"\x1e\x8c":  # gzip with another magic number
        data = zlib.decompressobj(31).decompress(b"\x1f\x8b" + data[2:])
    header = bytearray(byte ^ GROUP_KEY for byte in data[:GROUP_HEADER_BYTES])
    for i in range(0, GROUP_HEADER_BYTES - 2, 3):
        header[i], header[i + 2] = header[i + 2], header[i]
    (count,) = struct.unpack_from("<I", header, GROUP_COUNT_OFFSET)
    begin = GROUP_HEADER_BYTES + GROUP_ENTRY_BYTES * count
    for index in range(count):
        entry = GROUP_HEADER_BYTES + GROUP_ENTRY_BYTES * index
        inner = data[entry : entry + GROUP_NAME_BYTES].split(b"\0")[0].decode("latin-1").lower()
        _, is_group, size, _, offset = struct.unpack_from("<5I", data, entry + GROUP_NAME_BYTES)
        content = data[begin + offset : begin + offset + size]
        if is_group:
            yield from group_sounds(f"{name}/{inner}", content)
        elif Path(inner).suffix in SOUND_SUFFIXES:
            yield f"{name}/{inner}", content


def find_rule(name: str, rules: Sequence[Rule]) -> tuple[str | None, str] | None:
    """Class and phrase of a file by the first rule that fits; `None` if no rule fits or it says to leave it out."""
    for pattern, sound_class, phrase in rules:
        found = re.search(pattern, name)
        if found:
            return (sound_class, fill_phrase(phrase, found)) if phrase else None
    return None


def flat_name(name: str) -> str:
    """A path as a file name; `original_name` turns it back."""
    return name.removeprefix("./").replace("/", "%")


def original_name(path: Path) -> str:
    """The path that a kept file had in its package."""
    return path.name.replace("%", "/")
