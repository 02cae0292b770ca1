"""The clips that names on a command line stand for: files, folders, globs and URLs."""

from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path


# What is taken for audio in a folder; a file that is named is read whatever its name.
AUDIO_SUFFIXES = frozenset(
    {".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3"}
    | {".mp4", ".oga", ".ogg", ".opus", ".rf64", ".w64", ".wav", ".weba", ".webm", ".wma"}
)


def find_clips(names: Sequence[str]) -> list[str]:
    """The clips that names stand for, each once.

    Args:
        names: files and URLs; folders, whose audio files are taken with those of their folders; patterns such as
            `data/**/*.wav`. What matches nothing is taken as it is: reading it tells what is wrong.

    Raises:
        ValueError: for a folder without audio files.
    """
    return list(dict.fromkeys(clip for name in names for clip in _clips_of(name)))


def is_one_clip(names: Sequence[str]) -> bool:
    """Whether names are a single one that stands for itself, be it that of a file or a URL."""
    return len(names) == 1 and not Path(names[0]).is_dir() and not _matches(names[0])


def is_url(name: str) -> bool:
    """Whether a clip's name is a URL, be it one that holds the clip itself."""
    return "://" in name or name.startswith("data:")


def _clips_of(name: str) -> Iterator[str]:
    for path in _matches(name) or [name]:
        if Path(path).is_dir():
            yield from _clips_in(path)
        else:
            yield path


def _matches(name: str) -> list[str]:
    """What a pattern matches; nothing for the name of something that is there, and for URLs."""
    if is_url(name) or not has_magic(name) or Path(name).exists():
        return []
    return sorted(glob(name, recursive=True))


def _clips_in(folder: str) -> list[str]:
    """Audio files of a folder and of the folders within; hidden ones, such as `._a.wav` of macOS, are none."""
    files = [path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES]
    found = sorted(str(path) for path in files if path.is_file() and not path.name.startswith("."))
    if not found:
        raise ValueError(
            f"The folder {folder} has no audio files; their names end in {', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    return found
