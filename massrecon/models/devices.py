"""Which device a training runs on, and how it makes the most of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from massrecon.errors import InputError, unknown_name

Compilation = Literal["none", "kernels", "graphs"]
"""What `torch.compile` does in a training, see `TrainingConfig`."""


def chosen_device(accelerator: str) -> str:
    """Returns the device for ``"auto"`` or a name.

    Raises:
        InputError: If the name is unknown, or there is no such device.
    """
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if accelerator == "auto":
        return next((name for name, there in available.items() if there()), "cpu")
    if accelerator != "cpu" and accelerator not in available:
        raise unknown_name("accelerator", accelerator, ("auto", "cpu", *available))
    if accelerator != "cpu" and not available[accelerator]():
        raise InputError(f"There is no '{accelerator}' device here: use accelerator='auto'.")
    return accelerator


def use_bf16(precision: str, device: str) -> bool:
    """Decides whether to compute in bfloat16; emulating it is slower than float32."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    if device != "cpu" or not flags.exists():
        return False
    text = flags.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in text or "amx_bf16" in text


@contextlib.contextmanager
def matrix_products(precision: str, device: str) -> Iterator[None]:
    """Lets a CUDA device multiply float32 matrices in TF32, for ``"tf32"`` and inside the block."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32" and device == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_compilation(kind: Compilation, device: str) -> None:
    """Checks that a device has what a training asks for.

    Raises:
        InputError: If there are no CUDA graphs.
    """
    if kind == "graphs" and device != "cuda":
        raise InputError(f"'{device}' has no CUDA graphs: use compile='kernels' or 'none'.")


@contextlib.contextmanager
def compiled(model: nn.Module, kind: Compilation) -> Iterator[None]:
    """Lets `torch.compile` make kernels of the networks of a model, inside the block.

    Networks are the outermost modules that can be called, such as the encoder. Each is compiled at
    its first call with a new shape.

    Args:
        model: Anything built of modules.
        kind: ``"none"`` does nothing; ``"kernels"`` compiles; ``"graphs"`` also records the kernels
            as CUDA graphs, for small networks on a GPU, where starting kernels takes most of the
            time.
    """
    parts = [] if kind == "none" else networks(model)
    for part in parts:
        part.compile(mode="reduce-overhead" if kind == "graphs" else None)
    try:
        with warnings.catch_warnings():
            # the compiler looks at gradients of all tensors that it meets
            warnings.filterwarnings("ignore", message=r"The \.grad attribute", category=UserWarning)
            yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # there is no function to undo compile()


def eagerly(kind: Compilation) -> contextlib.AbstractContextManager[object]:
    """Runs what is compiled as it is written: for shapes and samplers that come now and then."""
    if kind == "none":  # the other one imports the whole compiler
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def networks(model: nn.Module) -> list[nn.Module]:
    """Lists the outermost modules below `model` that have a ``forward``."""
    found = []
    for part in model.children():
        callable_itself = type(part).forward is not nn.Module.forward
        found += [part] if callable_itself else networks(part)
    return found
