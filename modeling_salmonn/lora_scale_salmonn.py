"""The LoRA scale of a call: held in the context of its thread or task, and read where the update is computed.

PEFT computes `lora_B(lora_A(x)) * scaling`, with a `scaling` that all threads share. Here a forward hook on each
`lora_B` multiplies its output by `wanted / scaling`, so that nothing shared ever changes.
"""

import hashlib
import inspect
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import count
from numbers import Real
from threading import Lock
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import library, nn


LARGEST_SCALE = 1e6  # hundreds of thousands of times the trained one, and far from where floats end


class ModelKey:
    """Tells a model from others in the table of scales; a copy of the model has a key of its own."""

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelKey, ()


class HeldBlocks:
    """Whether any thread or task is in a block, which compiled code looks at, since it cannot read contexts."""

    def __init__(self) -> None:
        self.exist = False
        self.ended: deque[None] = deque()  # to append is safe in finalisers, to lock is not
        self._count, self._lock = 0, Lock()

    def settle(self, begun: int = 0) -> None:
        """Count the blocks that have begun and ended."""
        with self._lock:
            self._count += begun
            while self.ended:
                self.ended.pop()
                self._count -= 1
            self.exist = self._count > 0


_held_blocks = HeldBlocks()


class ScaledBlock:
    """One `with` block: the number of its model and the scale that holds in it; lives as long as a context has it."""

    def __init__(self, number: int, scale: float):
        self.number, self.scale = number, scale
        self.abandoned = False
        self._ended = _held_blocks.ended
        _held_blocks.settle(begun=1)

    def __del__(self) -> None:
        self._ended.append(None)


_blocks: ContextVar[tuple[ScaledBlock, ...]] = ContextVar("lora_scales", default=())
_hook_lock = Lock()


def checked_scale(scale: float) -> float:
    """A LoRA scale as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is negative, infinite, NaN, or beyond what updates can be multiplied by.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"lora_scale must be a number, got {scale!r} of type {type(scale).__name__}.")
    try:
        value = float(scale)  # numpy's numbers complain when they are compared with larger ones than their type has
    except OverflowError:
        value = math.inf
    if value < 0:
        raise ValueError(f"lora_scale must not be negative, got {scale}.")
    if not math.isfinite(value):
        raise ValueError(f"lora_scale must be finite, got {scale}.")
    if value > LARGEST_SCALE:
        raise ValueError(f"lora_scale must not be more than {LARGEST_SCALE:g}, got {scale}: its answers would be NaN.")
    return value


@contextmanager
def scaled(key: ModelKey, scale: float) -> Iterator[None]:
    """Have the updates of a model's adapter scaled in the body, and in threads and tasks that get its context."""
    block = ScaledBlock(key.number, scale)
    token = _blocks.set((*_blocks.get(), block))
    try:
        yield
    finally:
        others = tuple(other for other in _blocks.get() if other is not block)
        try:
            _blocks.reset(token)
        except ValueError:  # ended in another context, as generators that are given up may be
            block.abandoned = True
        _blocks.set(others)  # a block that began later may still be open
        del block
        _held_blocks.settle()


def current_scale(number: int) -> float | None:
    """The scale of the innermost block of a model in this context; `None` outside of all."""
    for block in reversed(_blocks.get()):
        if block.number == number and not block.abandoned:
            return block.scale
    return None


class UpdateScaler:
    """Forward hook of a `lora_B`: brings its update to the scale of the call."""

    def __init__(self, key: ModelKey, layer: LoraLayer, adapter: str):
        self.key, self.layer, self.adapter = key, layer, adapter

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if torch.compiler.is_compiling():
            if not _held_blocks.exist:  # a guard: what is compiled outside of blocks holds no trace of scales
                return None
            return output * _graph_factor(output.detach(), self.key.number, self.layer.scaling[self.adapter])
        scale = current_scale(self.key.number)
        if scale is None:
            return None
        own = self.layer.scaling[self.adapter]
        return None if scale == own else output * (scale / own)


def add_scalers(model: Any) -> ModelKey:
    """Hook every `lora_B` of the model that has no hook yet; returns the key of the model."""
    with _hook_lock:
        key = model.__dict__.setdefault("_lora_key", ModelKey())
        for layer in model.modules():
            if not isinstance(layer, LoraLayer):
                continue
            for adapter, update in layer.lora_B.items():
                if not any(isinstance(hook, UpdateScaler) for hook in update._forward_hooks.values()):
                    update.register_forward_hook(UpdateScaler(key, layer, adapter))
    return key


def checkpoint_in_scale(checkpoint: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Checkpoint a layer so that the backward pass, outside of the block, runs it again in the scale of the block."""
    if not _held_blocks.exist:
        return checkpoint(function, *args, **kwargs)
    return checkpoint(partial(_run_in, _blocks.get(), function), *args, **kwargs)


def _run_in(blocks: tuple[ScaledBlock, ...], function: Any, *args: Any, **kwargs: Any) -> Any:
    token = _blocks.set(blocks)
    try:
        return function(*args, **kwargs)
    finally:
        _blocks.reset(token)


def _factor(like: torch.Tensor, number: int, own: float) -> torch.Tensor:
    """What the update of a layer is multiplied by in this context, as a number on the device of `like`."""
    scale = current_scale(number)
    return torch.full((), 1.0 if scale is None or scale == own else scale / own, device=like.device)


def _callable_from_graphs() -> Any:
    """`_factor` as an operator that compiled code calls at every run, instead of keeping what it once returned."""
    if "tags" not in inspect.signature(library.custom_op).parameters:
        return torch.compiler.disable(_factor)  # an operator of old torch would be kept in CUDA graphs
    namespace = "salmonn_" + hashlib.sha256(__name__.encode()).hexdigest()[:16]  # a saved folder has its own copy
    tag = torch.Tag.cudagraph_unsafe
    operator = library.custom_op(f"{namespace}::lora_factor", _factor, mutates_args=(), tags=tag)
    operator.register_fake(lambda like, number, own: like.new_empty((), dtype=torch.float32))
    return operator


_graph_factor = _callable_from_graphs()
