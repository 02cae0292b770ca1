"""Loading of a model with its processor, by the installed package."""

from modeling_salmonn.hub.devices import resolve_device
from modeling_salmonn.hub.quantization import Quantization, quantization_config
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pipeline_salmonn import AudioTextPipeline
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


def load_pipeline(model: str, device: str, dtype: str, quantize: Quantization | None = None) -> AudioTextPipeline:
    """The pipeline of the installed package; code that comes with the model is not run.

    Args:
        model: folder or Hub id of a SALMONN.
        device: as `resolve_device` takes it.
        dtype: type of the weights, or `auto` for the saved one.
        quantize: smaller weights of the language model; see `quantization_config`.
    """
    processor = SalmonnProcessor.from_pretrained(model, trust_remote_code=False)
    place = resolve_device(device)
    if quantize is None:
        loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype=dtype)
        return AudioTextPipeline(model=loaded, processor=processor, device=place)
    loaded = SalmonnForConditionalGeneration.from_pretrained(
        model, dtype=dtype, quantization_config=quantization_config(quantize), device_map={"": place}
    )
    return AudioTextPipeline(model=loaded, processor=processor)  # it is where it belongs
