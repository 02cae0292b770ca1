"""The recorded answers of a folder, which its model has to give again, about clips that lie in the folder too."""

from glob import escape
from pathlib import Path
from typing import Any

from modeling_salmonn.checkpoint_files_salmonn import listing
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE, SavedFolder


GOLDEN_FIELDS = ("audio", "text", "answer")


def golden_cases(saved: SavedFolder) -> list[dict[str, Any]]:
    """The cases, each with the clip's path in the folder, what is asked about it, and the answer.

    Returns:
        The cases; none if the folder has no recorded answers.

    Raises:
        ValueError: if the file is damaged or of another form, or names a clip that does not lie in the folder.
    """
    if not saved.has(GOLDEN_FILE):
        return []
    cases = saved.read_json(GOLDEN_FILE).get("cases")
    if not isinstance(cases, list):
        raise ValueError(f"{GOLDEN_FILE} has no list of cases; save it again.")
    for case in cases:
        if not isinstance(case, dict) or not all(isinstance(case.get(name), str) for name in GOLDEN_FIELDS):
            raise ValueError(f"{GOLDEN_FILE} has a case without {', '.join(GOLDEN_FIELDS)}; save it again.")
        clip = Path(case["audio"])
        if clip.is_absolute() or ".." in clip.parts:
            raise ValueError(
                f"{GOLDEN_FILE} names the clip {case['audio']!r}, which is not in the folder; put it there, and give "
                "its path within the folder."
            )
    return cases


def golden_patterns(saved: SavedFolder) -> list[str]:
    """Patterns of all that belongs to the recorded answers: their clips, and what lies beside these, such as licences.

    Raises:
        ValueError: as `golden_cases`.
    """
    patterns = [GOLDEN_FILE]
    for case in golden_cases(saved):
        clip = Path(case["audio"])
        patterns.append(escape(clip.as_posix()))
        if clip.parent != Path():
            patterns.append(f"{escape(clip.parent.as_posix())}/*")
    return list(dict.fromkeys(patterns))


def require_golden_clips(saved: SavedFolder) -> None:
    """Refuse recorded answers about clips that are not there.

    Raises:
        ValueError: if there are such, or as `golden_cases`.
    """
    missing = sorted({case["audio"] for case in golden_cases(saved) if not saved.has(case["audio"])})
    if missing:
        raise ValueError(f"{GOLDEN_FILE} is about {listing(missing)}, which the folder lacks; put back or correct it.")
