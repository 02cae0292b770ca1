"""The LoRA scale of a call: absolute, its own in every thread, task and block, and gone afterwards."""

import asyncio
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from copy import deepcopy
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model
from model_bases import randomise_adapter
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from saved_folders import assert_loads_equal

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.lora_scale_salmonn import checked_scale


SCALES = (None, 0.0, 2.0, 8.0)  # None: as trained, 4.0
LANGUAGE_MODEL = r".*language_model\..*\.(q_proj|v_proj)"


@pytest.fixture(scope="module")
def inputs(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    return bucket_processor(text="What?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)


@pytest.fixture(scope="module")
def expected(
    bucket_model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> dict[float | None, torch.Tensor]:
    """The logits at each scale, computed one after the other."""
    found = {scale: logits(bucket_model, inputs, scale) for scale in SCALES}
    assert not any(torch.allclose(found[scale], found[None], atol=1e-3) for scale in SCALES[1:])
    return found


@pytest.fixture(scope="module")
def text() -> dict[str, torch.Tensor]:
    return {"inputs_embeds": torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))}


@torch.no_grad()
def logits(model: Any, inputs: Any, scale: float | None = None) -> torch.Tensor:
    with model.lora_scale(scale) if scale is not None else nullcontext():
        return model(**inputs).logits


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for the order of sums, which may be another in another thread."""
    return torch.allclose(found, wanted, atol=1e-4)


def adapted(config: SalmonnConfig, scaling: float | None = None, **options: Any) -> SalmonnForConditionalGeneration:
    """A model with an adapter of the same random weights whatever its scaling is."""
    model = tiny_model(config)
    options = {"r": 4, "lora_alpha": 20, "target_modules": LANGUAGE_MODEL} | options
    model.add_adapter(LoraConfig(**options | ({"lora_alpha": scaling * 4} if scaling is not None else {})))
    randomise_adapter(model)
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_lora_scale_is_absolute_whatever_the_adapter_was_trained_with(
    options: dict[str, Any], bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]
) -> None:
    model, own = adapted(bucket_config, **options), 10.0 if "use_rslora" in options else 5.0
    assert model.config.lora_scaling == own
    trained_at_3 = adapted(bucket_config, scaling=3.0, **options | {"use_rslora": False})
    trained_at_3.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(model, inputs, 3.0), logits(trained_at_3, inputs), atol=1e-4, rtol=1e-4)
    assert same(logits(model, inputs, own), logits(model, inputs))


def test_lora_scale_is_that_of_every_active_adapter(
    bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]
) -> None:
    model = adapted(bucket_config)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=LANGUAGE_MODEL), "other")
    randomise_adapter(model.eval())
    model.set_adapter(["default", "other"])
    scaled = logits(model, inputs, 3.0)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = dict.fromkeys(layer.scaling, 3.0)
    torch.testing.assert_close(scaled, logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("outer", "inner"), [(2.0, 2.0), (0.0, 8.0), (8.0, 0.0)])
def test_the_innermost_lora_scale_holds_and_the_outer_one_comes_back(
    outer: float,
    inner: float,
    bucket_model: SalmonnForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    expected: dict[float | None, torch.Tensor],
) -> None:
    with bucket_model.lora_scale(outer):
        assert same(logits(bucket_model, inputs, inner), expected[inner])
        assert same(logits(bucket_model, inputs), expected[outer])
    assert same(logits(bucket_model, inputs), expected[None])


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (-0.5, ValueError, "must not be negative, got -0.5"),
        (-math.inf, ValueError, "must not be negative, got -inf"),
        (math.nan, ValueError, "must be finite, got nan"),
        (math.inf, ValueError, "must be finite, got inf"),
        (10**400, ValueError, "must be finite"),
        (1e300, ValueError, r"must not be more than 1e\+06, got 1e\+300"),
        (True, TypeError, "must be a number, got True of type bool"),
        ("2", TypeError, "must be a number, got '2' of type str"),
        ([2.0], TypeError, "must be a number, got .* of type list"),
        (1j, TypeError, "must be a number, got 1j of type complex"),
    ],
    ids=["negative", "-inf", "nan", "inf", "huge", "large", "bool", "str", "list", "complex"],
)
def test_what_is_no_lora_scale_raises(
    scale: Any,
    error: type[Exception],
    message: str,
    bucket_model: SalmonnForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
) -> None:
    with pytest.raises(error, match=message), bucket_model.lora_scale(scale):
        pass
    with pytest.raises(error, match=message):
        bucket_model.generate(**inputs, max_new_tokens=1, lora_scale=scale)


def test_threads_at_different_lora_scales_answer_as_alone(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    prompt = bucket_processor(text="What?")
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "return_dict_in_generate": True, "output_logits": True}

    def answer(scale: float | None) -> torch.Tensor:
        return torch.stack(bucket_model.generate(**prompt, **options, lora_scale=scale).logits)

    def answer_often(scale: float | None) -> int:
        together.wait()
        return sum(same(answer(scale), alone[scale]) for _ in range(32))

    alone, together = {scale: answer(scale) for scale in SCALES}, Barrier(len(SCALES))
    assert not any(same(alone[scale], alone[None]) for scale in SCALES[1:])
    with ThreadPoolExecutor(len(SCALES)) as pool:
        assert sum(pool.map(answer_often, SCALES)) == 128
    assert same(answer(None), alone[None])


def test_lora_scale_holds_in_its_thread_alone(
    bucket_model: SalmonnForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    expected: dict[float | None, torch.Tensor],
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with bucket_model.lora_scale(0.0):
            assert same(pool.submit(logits, bucket_model, inputs).result(), expected[None])
            context = copy_context()
        inherited = pool.submit(context.run, logits, bucket_model, inputs).result()
    assert same(inherited, expected[0.0])  # to the end of what the thread does, although the block has ended


def test_lora_scale_holds_in_its_task_alone(
    bucket_model: SalmonnForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    expected: dict[float | None, torch.Tensor],
) -> None:
    async def answer(scale: float | None) -> torch.Tensor:
        with bucket_model.lora_scale(scale) if scale is not None else nullcontext():
            await asyncio.sleep(0)  # the other tasks open their blocks
            return (
                await asyncio.to_thread(logits, bucket_model, inputs) if scale == 2.0 else logits(bucket_model, inputs)
            )

    async def answer_all() -> list[torch.Tensor]:
        return await asyncio.gather(*map(answer, SCALES))

    for scale, found in zip(SCALES, asyncio.run(answer_all()), strict=True):
        assert same(found, expected[scale])


def begin_scaled(model: SalmonnForConditionalGeneration, scale: float) -> Iterator[None]:
    """A stream that is never read to its end."""
    with model.lora_scale(scale):
        yield


@pytest.mark.parametrize(
    "give_up",
    [lambda stream: stream.close(), lambda stream: copy_context().run(stream.close)],
    ids=["here", "elsewhere"],
)
def test_lora_scale_of_a_generator_that_is_given_up_is_gone(
    give_up: Callable[[Any], None],
    bucket_model: SalmonnForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    expected: dict[float | None, torch.Tensor],
) -> None:
    stream = begin_scaled(bucket_model, 0.0)
    next(stream)
    with bucket_model.lora_scale(2.0):
        give_up(stream)
        assert same(logits(bucket_model, inputs), expected[2.0])
    assert same(logits(bucket_model, inputs), expected[None])


def test_lora_scale_of_a_model_leaves_its_copies_and_others_alone(
    bucket_model: SalmonnForConditionalGeneration,
    bucket_config: SalmonnConfig,
    inputs: dict[str, torch.Tensor],
    expected: dict[float | None, torch.Tensor],
) -> None:
    copies = [deepcopy(bucket_model), tiny_model(bucket_config, lora=True)]
    copies[1].load_state_dict(bucket_model.state_dict())
    with bucket_model.lora_scale(0.0):
        copies.append(deepcopy(bucket_model))
        for copy in copies:
            assert same(logits(copy, inputs), expected[None])
            assert same(logits(copy, inputs, 2.0), expected[2.0])
        assert same(logits(bucket_model, inputs), expected[0.0])


def test_pickled_model_has_a_lora_scale_of_its_own(text: dict[str, torch.Tensor]) -> None:
    model = tiny_model(
        tiny_config(audio=False), lora=True
    )  # BEATs has parametrised weights, which torch never pickles
    trained, off = logits(model, text), logits(model, text, 0.0)
    copy = pickle.loads(pickle.dumps(model))
    with model.lora_scale(0.0):
        assert same(logits(copy, text), trained)
    assert same(logits(copy, text, 0.0), off)
    assert not same(trained, off)


def test_lora_scale_is_not_saved(bucket_config: SalmonnConfig, tmp_path: Any) -> None:
    model = tiny_model(bucket_config, lora=True)
    with model.lora_scale(0.0):
        model.save_pretrained(tmp_path)
    assert_loads_equal(tmp_path, model)


def test_compiled_model_follows_the_lora_scale(text: dict[str, torch.Tensor]) -> None:
    config = tiny_config(audio=False)
    config.text_config.num_hidden_layers = 1  # to compile sooner
    model = tiny_model(config, lora=True)
    alone = {scale: logits(model, text, scale) for scale in SCALES}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    try:
        for scale in (*SCALES, *SCALES):
            assert same(logits(compiled, text, scale), alone[scale])
        with ThreadPoolExecutor(len(SCALES)) as pool:
            together = pool.map(lambda scale: logits(compiled, text, scale), SCALES)
            for scale, found in zip(SCALES, together, strict=True):
                assert same(found, alone[scale])
        with model.lora_scale(0.0):
            context = copy_context()
        assert same(context.run(logits, compiled, text), alone[0.0])
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_keep_the_lora_scale_in_the_backward_pass(
    reentrant: bool, bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]
) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = tiny_model(
            tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True, lora_dropout=0.0),
            lora=True,
        ).train()
        model.model.qformer.eval()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with model.lora_scale(1.0):
            loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] > 260, -100)).loss
        loss.backward()
        return [parameter.grad for name, parameter in model.named_parameters() if ".lora_" in name]

    for found, wanted in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, wanted)


def test_lora_scale_of_disabled_adapters_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    model.disable_adapters()
    with (
        pytest.raises(ValueError, match=r"while adapters are disabled; call enable_adapters\(\)"),
        model.lora_scale(2),
    ):
        pass


def test_lora_scale_of_merged_layers_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    with pytest.raises(ValueError, match=r"merged into the weights of .*q_proj; call unmerge"), model.lora_scale(2.0):
        pass


def test_lora_scale_of_layers_that_are_switched_off_raises(
    bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]
) -> None:
    model = adapted(bucket_config)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", 0.0)
    assert same(logits(model, inputs, 0.0), logits(model, inputs))
    with pytest.raises(ValueError, match="scaling of 0, so its lora_scale cannot be 2"), model.lora_scale(2.0):
        pass


def test_adapter_without_effect_is_refused_and_leaves_no_trace(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config)
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="lora_alpha must be a finite number above 0, got 0"):
        model.add_adapter(LoraConfig(r=4, lora_alpha=0, target_modules=LANGUAGE_MODEL))
    assert set(model.state_dict()) == names
    assert model.config.lora_alpha == bucket_config.lora_alpha


def test_generate_scales_adapters_of_the_encoders_too(
    bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]
) -> None:
    model = adapted(bucket_config, target_modules=r".*speech_encoder.*\.(q_proj|v_proj)")
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    with model.lora_scale(0.5):
        wanted = model.generate(**inputs, **options).logits[0]
    assert same(model.generate(**inputs, **options, lora_scale=0.5).logits[0], wanted)
    assert not same(model.generate(**inputs, **options).logits[0], wanted)


@pytest.mark.parametrize("number", [np.float32(2.0), np.float16(2.0), np.int64(2)])
def test_numbers_of_numpy_are_scales(number: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked_scale(number) == 2.0
