"""One load at a time: transformers patches its own classes while it reads weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Two loads at once may leave `PreTrainedModel.tie_weights` patched for good: every later load of
# the process then has an output layer without weights. Reentrant: saved edits load their base.
_LOCK = threading.RLock()


@contextmanager
def one_load() -> Iterator[None]:
    """Block in which no other thread of this process loads a network.

    Example:
        >>> from transformers import AutoConfig
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> with one_load():
        ...     AutoConfig.from_pretrained(reference_encoder_path()).model_type
        'bert'
    """
    with _LOCK:
        # In a forked process torch sets its pool of threads up anew at the first such call. The
        # threads which transformers loads with would race for it, and some fail.
        torch.set_num_threads(torch.get_num_threads())
        yield
