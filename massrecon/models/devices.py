"""Which device a training runs on, and whether it has bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch

from massrecon.errors import InputError, unknown_name


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
