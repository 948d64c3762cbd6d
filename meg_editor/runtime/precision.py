"""Mixed precision."""

from __future__ import annotations

import torch

_FLAGS = {"amx_bf16", "avx512_bf16"}


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16 (AMX, AVX512-BF16).

    Others imitate it, and take up to 70 times as long as in float32.

    Example:
        >>> multiplies_bfloat16() in (True, False)
        True
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any(not _FLAGS.isdisjoint(line.split()) for line in file if line[:5] == "flags")
    except OSError:
        return False


def bfloat16(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16, where the hardware has it.

    Example:
        >>> with bfloat16("cpu", enabled=False):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    kind = torch.device(device).type
    return torch.autocast(
        kind, torch.bfloat16, enabled=enabled and (kind != "cpu" or multiplies_bfloat16())
    )
