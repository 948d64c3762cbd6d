"""Latency, throughput and memory of answering."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meg_editor.lm.answers import greedy_options
from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import left_padded
from meg_editor.model.meg_model import MeGModel


@dataclass(frozen=True)
class Latency:
    """Of single queries: milliseconds to a whole answer, and tokens per second."""

    p50: float
    p95: float
    tokens_per_second: float


def stored_bytes(edited: nn.Module | MeGModel, base: CausalLM) -> int:
    """Bytes which the edits take beside the base model: no text encoder, nor MeG's verifier.

    Both are there once, however many edits there are.
    """
    if isinstance(edited, MeGModel):
        return edited.stored_bytes
    buffers = (buffer for module in base.modules() for buffer in module.buffers(recurse=False))
    known = {tensor.data_ptr() for tensor in [*base.parameters(), *buffers]}
    added = {
        tensor.data_ptr(): tensor.nbytes
        for name, tensor in [*edited.named_parameters(), *edited.named_buffers()]
        if tensor.data_ptr() not in known and not name.startswith("encoder.")
    }
    return sum(added.values())


@torch.no_grad()
def latency(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    new_tokens: int = 20,
    warm_up: int = 3,
) -> Latency:
    """Latency of answering one prompt after the other with exactly `new_tokens` tokens each.

    `model` is anything with `generate`; the first `warm_up` prompts are answered twice.
    """
    seconds, device = [], input_device(model)
    options = greedy_options(tokenizer, new_tokens, new_tokens)
    for prompt in [*prompts[:warm_up], *prompts]:
        batch = left_padded(tokenizer, [prompt], device)
        _wait(device)
        start = time.perf_counter()
        model.generate(**batch, **options)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    timed = np.asarray(seconds[len(prompts[:warm_up]) :])
    p50, p95 = (1000 * float(q) for q in np.quantile(timed, (0.5, 0.95)))
    return Latency(p50, p95, new_tokens * len(timed) / float(timed.sum()))


def peak_memory(device: torch.device | str) -> int:
    """Bytes since the last `reset_peak_memory`, of the GPU or of the process.

    Of the process since it began, where its peak cannot be reset: Linux alone can.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device | str) -> None:
    """Restart the measurement of `peak_memory`, after giving back what is not used any more."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone can, and else has the peak of before
        ctypes.CDLL(None).malloc_trim(0)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # 5: the peak of resident memory


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
