"""What goes along with the weights of a model: its card, its licences, and the recorded answers with their clips."""

from pathlib import Path

from huggingface_hub import snapshot_download

from modeling_salmonn.hub.golden_answers import golden_patterns, require_golden_clips
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE, SavedFolder
from modeling_salmonn.hub.upload import CARD_FILES


def companion_files(model: str, with_answers: bool) -> dict[str, Path]:
    """The files, by their path in the model's folder.

    Args:
        model: folder or Hub id, of which they are downloaded.
        with_answers: also the recorded answers.

    Raises:
        ValueError: if the recorded answers are damaged, or clips of theirs are missing.
    """
    if Path(model).is_dir():
        return _companions_in(SavedFolder(Path(model)), with_answers)
    saved = SavedFolder(Path(snapshot_download(model, allow_patterns=[*CARD_FILES, GOLDEN_FILE])))
    if with_answers:  # which tell where their clips are
        snapshot_download(model, revision=saved.folder.name, allow_patterns=golden_patterns(saved))
    return _companions_in(saved, with_answers)


def _companions_in(saved: SavedFolder, with_answers: bool) -> dict[str, Path]:
    patterns = list(CARD_FILES)
    if with_answers:
        require_golden_clips(saved)
        patterns += golden_patterns(saved)
    return {name: saved.folder / name for name in saved.matching(patterns)}
