"""The mask of what the assistant says in a chat, which older releases of transformers misplace behind audio."""

import transformers
from packaging.version import Version


LOWEST_TRANSFORMERS = "5.18"


def require_placed_masks() -> None:
    """Refuse masks that would be misplaced: they are labels of training.

    Raises:
        ImportError: if the installed transformers counts the tokens of a clip as one.
    """
    if Version(Version(transformers.__version__).base_version) < Version(LOWEST_TRANSFORMERS):
        raise ImportError(
            f"return_assistant_tokens_mask needs transformers {LOWEST_TRANSFORMERS} or later, but "
            f"{transformers.__version__}, which misplaces the mask behind audio, is installed; run: "
            f'pip install "transformers>={LOWEST_TRANSFORMERS},<5.24"'
        )


__all__ = ["LOWEST_TRANSFORMERS", "require_placed_masks"]
