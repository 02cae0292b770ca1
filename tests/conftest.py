"""Fixtures: tiny random models, audio made on the spot, and the reference cases where they are present."""

import json
import os


os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
if os.environ.get("ATEN_CPU_CAPABILITY", "avx512") != "avx512":
    # Attention in bfloat16 asks oneDNN alone whether the processor has AMX, and then packs by a function that only the
    # AVX-512 build of torch has: the others raise.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # the next one down

import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from byte_tokenizer import byte_tokenizer
from hub_server import TOKEN, HubServer, hub_server
from model_bases import randomise_adapter, save_bases
from safetensors.torch import load_file
from transformers.utils import logging

from modeling_salmonn import (
    CHATML_CHAT_TEMPLATE,
    VICUNA_CHAT_TEMPLATE,
    SalmonnConfig,
    SalmonnFeatureExtractor,
    SalmonnForConditionalGeneration,
    SalmonnProcessor,
)
from modeling_salmonn.hub.convert import convert_checkpoint


torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SALMONN_SHARED", ROOT.parent / "shared"))
CASES = ("tiny", "nobeats")

SAMPLING_RATE = 16000
SEGMENT_CHOICES = (30.0, [2, 5, 10, 30])
TEXT_MODELS = ("llama", "qwen2", "qwen3")


class ReferenceCase:
    """One folder of recorded data: the authors' code run with small random weights."""

    def __init__(self, folder: Path, converted: Path):
        self.folder = folder
        self.converted = converted
        self.golden: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        self.tensors: dict[str, torch.Tensor] = load_file(folder / "golden.safetensors")
        self.has_beats = (folder / "beats.pt").exists()

    def clips(self) -> dict[str, dict[str, Any]]:
        return self.golden["wavs"]

    def audio(self, clip: str) -> str:
        return str(self.folder / "audio" / f"{clip}.wav")

    def compare(self, name: str, value: torch.Tensor, tolerance: float, time_axis: int = 1) -> None:
        """Compare with the recorded tensor, or with every 16th entry of its time axis where only that is recorded."""
        value = value.detach().float()
        if name in self.tensors:
            expected = self.tensors[name].float()
        else:
            expected = self.tensors[f"{name}.every16"].float()
            value = value.index_select(time_axis, torch.arange(0, value.shape[time_axis], 16))
        assert value.shape == expected.shape, f"{name}: {tuple(value.shape)} against {tuple(expected.shape)}"
        worst = (value - expected).abs().max().item()
        assert worst <= tolerance, f"{name} differs by {worst:.2e}"


def reference_folder(case: str) -> Path:
    folder = SHARED / "reference" / case
    if not folder.is_dir():
        pytest.skip(f"the reference data {folder} is not on this machine")
    return folder


def convert_case(folder: Path, output: Path, **options: Any) -> Path:
    beats = folder / "beats.pt"
    convert_checkpoint(
        whisper=str(folder / "whisper"),
        beats=str(beats) if beats.exists() else None,
        llm=str(folder / "llama"),
        checkpoint=folder / "salmonn.pth",
        config=folder / "decode_config.yaml",
        qformer_heads=4,
        output=output,
        **options,
    )
    return output


@pytest.fixture(scope="session", params=CASES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceCase:
    folder = reference_folder(request.param)
    return ReferenceCase(folder, convert_case(folder, tmp_path_factory.mktemp("converted") / request.param))


def tiny_config(text_model: str = "llama", audio: bool = True, **options: Any) -> SalmonnConfig:
    """Both encoders with 30 s of positions, a few thousand parameters each."""
    text = {
        "model_type": text_model,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 261,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,  # spread logits, so that greedy choices are clear
    }
    speech = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    speech |= {"num_mel_bins": 80, "decoder_layers": 1, "vocab_size": 99}
    speech |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 1}
    beats = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    beats |= {"patch_embed_size": 16, "conv_pos_kernel": 16, "conv_pos_groups": 4}
    qformer = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    qformer |= {"num_query_tokens": options.pop("num_query_tokens", 1)}
    return SalmonnConfig(
        text_config=text,
        speech_config=speech,
        audio_config=beats if audio else None,
        qformer_config=qformer,
        audio_token_id=261,  # beyond the vocabulary, as in converted models
        **options,
    )


def tiny_processor(config: SalmonnConfig, chatml: bool = False, **options: Any) -> SalmonnProcessor:
    extractor = SalmonnFeatureExtractor(
        num_fbank_bins=128 if config.audio_config is not None else 0,
        segment_seconds=config.segment_seconds,
        window_seconds=config.window_seconds,
        stride_seconds=config.stride_seconds,
        num_query_tokens=config.qformer_config.num_query_tokens,
        trim_audio_tokens=config.trim_audio_tokens,
        **options,
    )
    template = CHATML_CHAT_TEMPLATE if chatml else VICUNA_CHAT_TEMPLATE
    return SalmonnProcessor(extractor, byte_tokenizer(chatml), chat_template=template)


def tiny_model(config: SalmonnConfig, lora: bool = False) -> SalmonnForConditionalGeneration:
    """Random weights that depend on the configuration alone; the adapter, if any, is not zero.

    Greedy answers are as long as they may be: the logit of their end is zero, and others are always larger.
    """
    torch.manual_seed(0)
    model = SalmonnForConditionalGeneration(deepcopy(config))
    with torch.no_grad():
        model.lm_head.weight[config.text_config.eos_token_id] = 0.0
    if lora:
        model.add_lora()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_clip(seconds: float, rate: int = SAMPLING_RATE, seed: int = 0) -> np.ndarray:
    """A tone with noise, different for every seed."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 + 37 * seed) * time)
    return (tone + 0.1 * generator.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def model() -> SalmonnForConditionalGeneration:
    """The official layout: every segment is 30 s, and so are its 88 tokens."""
    return tiny_model(tiny_config())


@pytest.fixture(scope="session")
def processor() -> SalmonnProcessor:
    return tiny_processor(tiny_config())


@pytest.fixture(scope="session")
def bucket_config() -> SalmonnConfig:
    """Short segments and trimmed tokens: the quick layout, for tests that do not depend on it."""
    return tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)


@pytest.fixture(scope="session")
def bucket_model(bucket_config: SalmonnConfig) -> SalmonnForConditionalGeneration:
    return tiny_model(bucket_config, lora=True)


@pytest.fixture(scope="session")
def bucket_processor(bucket_config: SalmonnConfig) -> SalmonnProcessor:
    return tiny_processor(bucket_config)


@pytest.fixture(scope="session")
def chatml_processor(bucket_config: SalmonnConfig) -> SalmonnProcessor:
    return tiny_processor(bucket_config, chatml=True)


@pytest.fixture(params=["vicuna", "chatml"])
def any_processor(
    request: pytest.FixtureRequest, bucket_processor: SalmonnProcessor, chatml_processor: SalmonnProcessor
) -> SalmonnProcessor:
    return bucket_processor if request.param == "vicuna" else chatml_processor


@pytest.fixture(scope="session")
def saved_folder(
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A complete Hub folder with a LoRA adapter."""
    folder = tmp_path_factory.mktemp("saved") / "salmonn-tiny"
    bucket_model.save_pretrained(folder)
    bucket_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def based_model(
    bucket_config: SalmonnConfig, tmp_path_factory: pytest.TempPathFactory
) -> SalmonnForConditionalGeneration:
    """A model with a LoRA adapter whose config names the bases that it was made of."""
    model = tiny_model(bucket_config)
    model.config.update(save_bases(model, tmp_path_factory.mktemp("bases")))
    model.add_lora()
    randomise_adapter(model)
    return model.eval()


@pytest.fixture(scope="session")
def adapter_folder(
    based_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A Hub folder of what was trained alone."""
    folder = tmp_path_factory.mktemp("saved") / "salmonn-adapter"
    based_model.save_pretrained(folder, adapter_only=True)
    bucket_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wav_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 s, mono, 16 kHz."""
    path = tmp_path_factory.mktemp("audio") / "tone.wav"
    soundfile.write(path, make_clip(1.5), SAMPLING_RATE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to be, apart from what else is in `tmp_path`."""
    return tmp_path / "data"


@pytest.fixture
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from, or left in, the caches of the machine."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.fingerprint._CACHING_ENABLED", True)  # an example turns it off
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub, and a user who may write there."""
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it remembers the address
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """The command silences its process; here others share it."""
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
