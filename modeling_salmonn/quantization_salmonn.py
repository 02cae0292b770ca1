"""Loading with smaller weights: those of the language model alone, whose inputs are what the encoders hear."""

from typing import Any


# All but the decoder layers of the language model, by full names: of the whole model, and of `SalmonnModel` alone.
# Names that are only a part, such as BEATs' gate_proj, would be looked for in the language model as well.
KEPT_PARTS = ("speech_encoder", "audio_encoder", "qformer", "projector")
KEPT_MODULES = [*(f"model.{part}" for part in KEPT_PARTS), *KEPT_PARTS, "lm_head"]
# What the methods call the modules that they leave as they are.
SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")


def keep_audio_parts(quantization: Any) -> Any:
    """Have a quantisation leave encoders, Q-Former, projection and head as they are, besides what it names itself.

    Args:
        quantization: configuration of a method of transformers, or the dict of one; it is changed in place.

    Returns:
        The same.

    Raises:
        ValueError: if the method cannot leave modules as they are.
    """
    if isinstance(quantization, dict):
        key = "llm_int8_skip_modules" if _is_bitsandbytes(quantization) else "modules_to_not_convert"
        quantization[key] = _joined(quantization.get(key))
        return quantization
    field = next((name for name in SKIP_FIELDS if hasattr(quantization, name)), None)
    if field is None:
        raise ValueError(
            f"{type(quantization).__name__} names no modules to leave as they are, so that the encoders would be "
            "quantised too; use a method that does, such as BitsAndBytesConfig(load_in_8bit=True)."
        )
    setattr(quantization, field, _joined(getattr(quantization, field)))
    return quantization


def _is_bitsandbytes(quantization: dict[str, Any]) -> bool:
    return bool(quantization.get("load_in_8bit") or quantization.get("load_in_4bit"))


def _joined(named: list[str] | None) -> list[str]:
    return list(dict.fromkeys([*(named or []), *KEPT_MODULES]))
