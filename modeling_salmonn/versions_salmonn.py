"""Versions of libraries that do not work together: told in a sentence, before they fail in a less readable way.

Importing this file warns of them, so that `salmonn doctor` can still be run; what cannot work raises when it is used.
"""

import warnings
from importlib.metadata import version

from packaging.version import Version


# As in the metadata of the package.
LOWEST = {"transformers": "5.16.1", "torch": "2.6", "peft": "0.20"}
MEND = 'pip install "transformers>=5.16.1,<5.24" "torch>=2.6" "peft>=0.20"'

try:
    from transformers.integrations.peft import MIN_PEFT_VERSION
except ImportError:  # it is not said to stay there
    MIN_PEFT_VERSION = LOWEST["peft"]


def find_mismatch() -> str | None:
    """The first two versions that do not work together, in a sentence that ends with the command that mends it."""
    needs = [("SALMONN", name, lowest) for name, lowest in LOWEST.items()]
    needs.append((f"transformers {version('transformers')}", "peft", MIN_PEFT_VERSION))
    for user, name, lowest in needs:
        if _is_older(name, lowest):
            return f"{user} needs {name} {lowest} or later, but {name} {version(name)} is installed; run: {MEND}"
    return None


def require_matching_versions() -> None:
    """Refuse, by an `ImportError`, versions that do not work together."""
    mismatch = find_mismatch()
    if mismatch is not None:
        raise ImportError(mismatch)


def _is_older(name: str, lowest: str) -> bool:
    release = Version(version(name)).base_version  # a preview has what its release has
    return Version(release) < Version(lowest)


def _warn_of_mismatch() -> None:
    if _is_older("transformers", LOWEST["transformers"]):
        require_matching_versions()  # the imports that follow would fail
    mismatch = find_mismatch()
    if mismatch is not None:
        warnings.warn(mismatch, stacklevel=3)


_warn_of_mismatch()
