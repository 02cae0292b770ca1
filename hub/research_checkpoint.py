"""Checkpoints of the research code: read once, without executing pickled code, and under the names of our model.

Every tensor is either mapped or known to be obsolete; anything else is an error that names the keys.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modeling_salmonn.base_weights_salmonn import StateDict, read_torch_file
from modeling_salmonn.data.text_files import read_yaml_mapping
from modeling_salmonn.hub.weight_checks import require_scales, require_sound
from modeling_salmonn.weight_names_salmonn import is_adapter_name


# The names of BLIP-2's Q-Former, which the research code uses, of peft's LoRA, and of that code's own parts.
_LAYER = r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\."
_OUR_LAYER = r"model.qformer.layers.\1."
_LORA = r"^llama_model\.base_model\.model\.model\.layers\.(.*)\.lora_([AB])\.(?:default\.)?weight$"
RENAMES = (
    (r"^speech_query_tokens$", "model.qformer.query_tokens"),
    (r"^ln_(speech|audio)\.", r"model.ln_\1."),
    (r"^speech_llama_proj\.", "model.projector."),
    (r"^speech_Qformer\.bert\.embeddings\.LayerNorm\.", "model.qformer.layer_norm."),
    (_LAYER + r"attention\.self\.", _OUR_LAYER + "self_attention."),
    (_LAYER + r"attention\.output\.dense\.", _OUR_LAYER + "self_attention.output."),
    (_LAYER + r"attention\.output\.LayerNorm\.", _OUR_LAYER + "self_attention.layer_norm."),
    (_LAYER + r"crossattention\.self\.", _OUR_LAYER + "cross_attention."),
    (_LAYER + r"crossattention\.output\.dense\.", _OUR_LAYER + "cross_attention.output."),
    (_LAYER + r"crossattention\.output\.LayerNorm\.", _OUR_LAYER + "cross_attention.layer_norm."),
    (_LAYER + r"intermediate_query\.dense\.", _OUR_LAYER + "fc1."),
    (_LAYER + r"output_query\.dense\.", _OUR_LAYER + "fc2."),
    (_LAYER + r"output_query\.LayerNorm\.", _OUR_LAYER + "layer_norm."),
    (_LORA, r"model.language_model.layers.\1.lora_\2.default.weight"),
)
# Buffers that current code computes itself, and the one table that BEATs shares between layers.
OBSOLETE = re.compile(
    r"rotary_emb\.inv_freq$|position_ids$|^beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight$"
)
QUERY_TOKENS = "model.qformer.query_tokens"
FIRST_FC1 = "model.qformer.layers.0.fc1.weight"
REQUIRED = (QUERY_TOKENS, FIRST_FC1, "model.projector.weight", "model.ln_speech.weight")


@dataclass(frozen=True)
class ResearchCheckpoint:
    """What was trained, and how."""

    weights: StateDict  # under the names of `SalmonnForConditionalGeneration`
    settings: dict[str, Any]  # the `model` section of the configuration
    mapped: dict[str, str]  # our name of each tensor by the name in the file
    obsolete: list[str]  # names in the file that nothing is needed of

    @classmethod
    def read(cls, path: str | os.PathLike, config: str | os.PathLike | None = None) -> "ResearchCheckpoint":
        """Read a checkpoint, with the YAML of the research code or with the configuration that is stored in it."""
        content = read_torch_file(path)
        if not isinstance(content.get("model"), dict):
            raise ValueError(f"{path} has the keys {sorted(content)}, but a SALMONN checkpoint has 'model'.")
        mapped, obsolete = _map_names(content["model"])
        given = {key: content["model"][key] for key in mapped}
        require_sound(given, str(path))  # under their own names, by which they are looked for in the file
        weights = {name: given[key] for key, name in mapped.items()}
        require_scales(weights, str(path))
        _require_matrices(weights, path)
        return cls(weights, _read_settings(config, content.get("config")), mapped, obsolete)

    @property
    def lora(self) -> StateDict:
        """The tensors of the LoRA adapter."""
        return {name: tensor for name, tensor in self.weights.items() if is_adapter_name(name)}

    @property
    def connector(self) -> StateDict:
        """All other tensors."""
        return {name: tensor for name, tensor in self.weights.items() if not is_adapter_name(name)}

    @property
    def has_audio_encoder(self) -> bool:
        """Whether it was trained with BEATs."""
        return "model.ln_audio.weight" in self.weights

    def qformer_settings(self, num_attention_heads: int) -> dict[str, int]:
        """Settings of the Q-Former by the shapes of its tensors, which do not tell the heads."""
        layers = {name.split(".")[3] for name in self.weights if name.startswith("model.qformer.layers.")}
        # Queries are (1, queries, hidden); the first linear layer of a block is (intermediate, hidden).
        _, num_query_tokens, hidden_size = self.weights[QUERY_TOKENS].shape
        return {
            "hidden_size": hidden_size,
            "num_hidden_layers": len(layers),
            "num_attention_heads": num_attention_heads,
            "intermediate_size": self.weights[FIRST_FC1].shape[0],
            "num_query_tokens": num_query_tokens,
        }

    def lora_settings(self) -> dict[str, Any]:
        """Settings of the adapter by its tensors, and by the configuration where they do not tell."""
        ranks, targets = set(), set()
        for name, tensor in self.weights.items():
            module, mark, _ = name.partition(".lora_A.")
            if mark:
                ranks.add(tensor.shape[0])  # (rank, hidden)
                targets.add(module.rsplit(".", 1)[1])
        if len(ranks) > 1:
            raise ValueError(f"The LoRA tensors have several ranks {sorted(ranks)}; one is expected.")
        return {
            "lora_rank": ranks.pop() if ranks else self.settings.get("lora_rank", 8),
            "lora_alpha": self.number("lora_alpha", 32),
            "lora_dropout": self.number("lora_dropout", 0.1),
            "lora_target_modules": sorted(targets) or ["q_proj", "v_proj"],
        }

    def number(self, name: str, default: float) -> float:
        """A number of the configuration; a `ValueError` if there is something else under this name."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} in the model section must be a number, got {value!r}.")
        return value


def _map_names(keys: Mapping[Any, Any]) -> tuple[dict[str, str], list[str]]:
    """Our name of each key, and the keys that are obsolete."""
    mapped, obsolete, unknown = {}, [], []
    for key in keys:
        name = _rename(str(key))
        if name is not None:
            mapped[key] = name
        elif OBSOLETE.search(str(key)):
            obsolete.append(key)
        else:
            unknown.append(str(key))
    if unknown:
        raise ValueError(f"The checkpoint has keys that SALMONN does not know: {sorted(unknown)}.")
    missing = sorted(set(REQUIRED).difference(mapped.values()))
    if missing:
        raise ValueError(f"The checkpoint lacks {missing}; is it a SALMONN checkpoint with a window-level Q-Former?")
    return mapped, obsolete


def _rename(key: str) -> str | None:
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return None


def _require_matrices(weights: StateDict, path: str | os.PathLike) -> None:
    """The tensors whose shapes tell the configuration have as many dimensions as they must."""
    dimensions = {QUERY_TOKENS: 3, FIRST_FC1: 2}
    dimensions |= dict.fromkeys(filter(is_adapter_name, weights), 2)
    for name, count in dimensions.items():
        shape = tuple(weights[name].shape)
        if len(shape) != count or 0 in shape:
            raise ValueError(f"{path}: {name} has the shape {shape}, but {count} dimensions are needed.")


def _read_settings(config: str | os.PathLike | None, stored: Any) -> dict[str, Any]:
    """The `model` section of the YAML file, or of the configuration stored in the checkpoint."""
    if config is not None:
        stored, _ = read_yaml_mapping(config, "YAML file of the research code", "have a 'model' section")
        if not isinstance(stored.get("model"), Mapping):
            raise ValueError(f"{config} has no 'model' section; give a YAML of the research code.")
    settings = stored.get("model") if isinstance(stored, Mapping) else None
    settings = dict(settings) if isinstance(settings, Mapping) else {}
    if not settings.get("window_level_Qformer", True) or not settings.get("use_speech_Qformer", True):
        raise ValueError("This checkpoint was trained without the window-level Q-Former, which SALMONN needs.")
    return settings
