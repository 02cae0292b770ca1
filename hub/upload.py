"""The files of a saved folder that go to the Hub.

What loading, checking and understanding a model takes is uploaded; all else is left out and named: what training left
there, pickles, whatever begins with a dot. Two files are not uploaded as they are: the card, and the adapter's config,
whose base `AutoModel` follows.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedConfig

from modeling_salmonn.base_weights_salmonn import load_base_weights
from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    CONNECTOR_FILE,
    GENERATION_FILE,
    is_own_weight_file,
    listing,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.golden_answers import golden_patterns
from modeling_salmonn.hub.model_card import (
    CARD_FILE,
    EVAL_RESULTS_FILE,
    eval_results_yaml,
    is_hub_id,
    published_card,
    unstated_parts,
)
from modeling_salmonn.hub.saved_folder import SavedFolder
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.weight_names_salmonn import is_adapter_name, plain_name


# A star stands for one name, not for folders.
MODEL_FILES = (CONFIG_FILE, GENERATION_FILE, "*report.json", "*.py")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TEMPLATE_FILES = ("chat_template.*", "additional_chat_templates/*")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
ADAPTER_FILES = (f"*/{ADAPTER_CONFIG_FILE}", f"*/{ADAPTER_FILE}")  # beside the active one, for `load_adapter`
CARD_FILES = (CARD_FILE, "LICENSE*", "NOTICE*", "*.png", "*.svg", ".eval_results/*.yaml")
PUBLISHED = (
    *MODEL_FILES, *PROCESSOR_FILES, *TEMPLATE_FILES, *TOKENIZER_FILES, *ADAPTER_FILES, *CARD_FILES,
)  # fmt: skip
CHECKPOINTS = "checkpoint-*/*"


@dataclass(frozen=True)
class Upload:
    """What is uploaded.

    Args:
        files: contents, or files of this machine, by their path in the repository.
        left_out: files of the folder that are not uploaded.
        unstated: what the card leaves its readers to guess.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]
    unstated: list[str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def collect_files(folder: Path, repo_id: str) -> Upload:
    """The files of a folder for a repository.

    Args:
        folder: a whole folder, or an adapter-only one.
        repo_id: Hub id of the repository.

    Raises:
        ValueError: if the card or the recorded answers cannot be read, or others could not fetch the bases that an
            adapter-only folder names.
    """
    saved = SavedFolder(folder)
    if saved.has(CONNECTOR_FILE):
        _require_public_bases(saved.config)
    names = published_names(saved)
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    for name in names:
        if name.endswith(ADAPTER_CONFIG_FILE):  # names the folder of this machine that its base was loaded from
            adapter = saved.read_json(name) | {"base_model_name_or_path": repo_id, "revision": None}
            files[name] = (json.dumps(adapter, indent=2) + "\n").encode()
    card = published_card(folder, repo_id, saved.config)
    files[CARD_FILE] = str(card).encode()
    results = eval_results_yaml(card)
    if results is not None:
        files[EVAL_RESULTS_FILE] = results
    left_out = [name for name in saved.names() if name not in files]
    return Upload(dict(sorted(files.items())), left_out, unstated_parts(card))


@contextmanager
def adapter_only(folder: Path) -> Iterator[Path]:
    """A folder of what was trained alone, on the bases that the config names.

    Args:
        folder: a whole folder, or one that is of this form already.

    Yields:
        The folder, which is a temporary one unless `folder` is of this form.

    Raises:
        ValueError: if the config does not name the bases by Hub ids, or they have other weights than the folder.
    """
    saved = SavedFolder(folder)
    if saved.has(CONNECTOR_FILE):
        yield folder
        return
    _require_public_bases(saved.config)
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    _require_same_bases(model)
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.resolve().name
        model.save_pretrained(copy, adapter_only=True)
        SalmonnProcessor.from_pretrained(folder, trust_remote_code=False).save_pretrained(copy)
        for name in published_names(saved):
            if not (copy / name).exists() and not is_own_weight_file(name):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, copy / name)
        yield copy


def published_names(saved: SavedFolder) -> list[str]:
    """The files of a folder that go to the Hub, those in folders below by their relative path."""
    published = set(saved.matching(PUBLISHED)) - set(saved.matching([CHECKPOINTS]))
    published |= set(saved.matching(golden_patterns(saved)))
    return [name for name in saved.names() if name in published or is_own_weight_file(name)]


def _require_public_bases(config: SalmonnConfig) -> None:
    parts = [part for part in ("speech", "audio", "text") if getattr(config, f"{part}_config") is not None]
    bases = {f"{part}_model_id": getattr(config, f"{part}_model_id") for part in parts}
    private = [f"{name} {base!r}" for name, base in bases.items() if not (base and is_hub_id(base))]
    if private:
        raise ValueError(
            f"Others cannot fetch the bases that {CONFIG_FILE} names by {listing(private)}; set Hub ids there, or "
            "push a whole model, which holds its bases."
        )


def _require_same_bases(model: SalmonnForConditionalGeneration) -> None:
    own = {plain_name(key): tensor for key, tensor in model.state_dict().items() if not is_adapter_name(key)}
    config: PreTrainedConfig = model.config
    bases = load_base_weights(config, model.dtype)
    other = [key for key, tensor in bases.items() if key in own and not torch.equal(own[key], tensor)]
    if other:
        raise ValueError(
            f"The bases that {CONFIG_FILE} names have other weights than this folder ({listing(other)}), so that what "
            "was trained would answer otherwise on them; push the whole model, without --adapter-only."
        )
