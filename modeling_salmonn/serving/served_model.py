"""The one model of a server: its names, and requests as inputs of `generate`."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from modeling_salmonn.context_length_salmonn import max_positions
from modeling_salmonn.hub.loading import load_pipeline
from modeling_salmonn.hub.quantization import Quantization
from modeling_salmonn.lora_scale_salmonn import checked_scale
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS


MOST_CLIPS = 8  # of a request
MOST_NEW_TOKENS = 1024
# Fields that would change the answer and that nothing here reads, with the values that change none.
UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0, 0.0),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "top_logprobs": (0,),
    # These are for whoever starts a server: they lift its limits.
    "chat_template_kwargs": ({},),
    "generation_config": (),
}


class UnknownModelError(ValueError):
    """A client asked for a model that is not served."""


class ServedModel:
    """A model and its processor, which reads nothing of the server's machine and network for clients.

    Takes the place of transformers' `ModelManager`, which loads whatever model a client names.

    Args:
        path: folder or Hub id.
        device: see `resolve_device`.
        dtype: of the weights, or `auto`.
        max_audio_seconds: longest clip.
        max_clip_bytes: largest clip behind a URL.
        quantize: smaller weights of the language model; see `quantization_config`.
    """

    force_model = None

    def __init__(
        self,
        path: str,
        device: str,
        dtype: str,
        max_audio_seconds: float,
        max_clip_bytes: int,
        quantize: Quantization | None = None,
    ):
        self.name = Path(path).resolve().name if Path(path).is_dir() else path
        pipe: Any = load_pipeline(path, device, dtype, quantize)
        self.model, self.processor = pipe.model.eval(), pipe.processor
        extractor = self.processor.feature_extractor
        extractor.allow_paths = False
        extractor.max_download_bytes = max_clip_bytes
        extractor.max_audio_seconds = min(max_audio_seconds, extractor.max_audio_seconds or max_audio_seconds)

    def get_gen_models(self) -> list[dict[str, Any]]:
        """The list of models, as transformers' server asks for it."""
        return [self.describe(self.name)]

    def describe(self, requested: str) -> dict[str, Any]:
        """What a client is told of a model that it names.

        Raises:
            UnknownModelError: if it is not served.
        """
        self.read_scale(requested)
        return {"id": requested, "object": "model", "created": 0, "owned_by": ""}

    def shutdown(self) -> None:
        """Nothing is left to do when the server ends."""

    def read_scale(self, requested: Any) -> float | None:
        """The LoRA scale in a model's name, `NAME@SCALE`; `None` for the name alone.

        Raises:
            UnknownModelError: for any other name.
            ValueError: for a scale that the model cannot take.
        """
        if requested == self.name:
            return None
        name, _, scale = str(requested).rpartition("@")
        if name != self.name:
            raise UnknownModelError(
                f"There is no model {requested!r:.200}; this server has {self.name!r}, and {self.name + '@2.0'!r} for "
                "a LoRA scale of 2.0."
            )
        try:
            value = checked_scale(float(scale))
        except ValueError as error:
            raise ValueError(f"The model {requested!r:.200} names no LoRA scale: {error}") from error
        with self.model.lora_scale(value):  # which tells whether there is an adapter to scale
            return value

    def prepare(self, messages: Any, scale: float | None) -> Any:
        """Inputs of `generate` for chat messages, on the device of the model; reads and decodes clips.

        Raises:
            ValueError: for messages and clips that cannot or may not be read.
        """
        # Text is escaped, so that the placeholders are as many as the clips.
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        count = prompt.count(self.processor.audio_token)
        if count > MOST_CLIPS:
            raise ValueError(f"The request has {count} clips; send at most {MOST_CLIPS}.")
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        if scale is not None:
            inputs["lora_scale"] = scale
        return inputs

    def require_fitting(self, inputs: Any, new_tokens: int) -> None:
        """Refuse a prompt whose answer would go beyond the positions of the language model."""
        tokens, positions = inputs["input_ids"].shape[1], max_positions(self.model.config.get_text_config())
        if positions is not None and tokens + new_tokens > positions:
            raise ValueError(
                f"The prompt has {tokens} tokens, audio tokens included, and {new_tokens} new ones may follow, but "
                f"the model has {positions} positions; send a shorter clip or ask for fewer tokens."
            )


def require_supported(body: Mapping[str, Any]) -> None:
    """Refuse fields of a chat completion that would be dropped.

    Raises:
        ValueError: naming the field.
    """
    for name, neutral in UNSUPPORTED_FIELDS.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise ValueError(f"This server does not take {name!r}; leave it out.")
    if body.get("seed") is not None and body.get("temperature"):
        raise ValueError("This server does not take 'seed' with a temperature: answers are drawn from one generator.")


def read_sampling(own: Any, options: Mapping[str, Any]) -> Any:
    """The generation config that a request asks for.

    Args:
        own: the model's; it is left as it is.
        options: fields of a chat completion. `max_completion_tokens`, or `max_tokens`: longest answer, by default the
            model's own. `temperature`: 0 for the most probable token, more to draw; by default the model's own choice.
            `top_p`: share of the probabilities to draw from. `stream`: whether the text is sent piece by piece; beams
            may change all of it until their end.

    Raises:
        ValueError: for numbers out of range, and a `top_p` where nothing is drawn.
    """
    config = deepcopy(own)
    config.max_new_tokens = min(own.max_new_tokens or DEFAULT_NEW_TOKENS, MOST_NEW_TOKENS)
    for name in ("max_tokens", "max_completion_tokens"):
        if options.get(name) is not None:
            config.max_new_tokens = _as_number(options[name], int, name, 1, MOST_NEW_TOKENS)
    temperature = options.get("temperature")
    if temperature is not None:
        value = _as_number(temperature, float, "temperature", 0, 2)
        config.do_sample = value > 0
        config.temperature = value if value > 0 else None
    if options.get("top_p") is not None:
        _set_top_p(config, options["top_p"], temperature)
    if options.get("stream") or config.do_sample:
        config.num_beams = 1
    return config


def _set_top_p(config: Any, top_p: Any, temperature: Any) -> None:
    """1 leaves all tokens to draw from, and a temperature of 0 asks for the most probable one, whatever `top_p` is."""
    share = _as_number(top_p, float, "top_p", 0, 1)
    if config.do_sample:
        config.top_p = share
    elif share < 1 and temperature is None:
        raise ValueError(
            f"top_p {share:g} says what to draw from, but nothing is drawn without a temperature; send one too, such "
            "as 1, or leave top_p out."
        )


def _as_number(value: Any, kind: type, name: str, least: int, most: int) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a number, got {value!r:.80}.") from error
    if not least <= number <= most:
        raise ValueError(f"{name} must be {least} to {most}, got {number}.")
    return number
