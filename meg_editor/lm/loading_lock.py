"""One load at a time: transformers patches its own classes while it reads weights."""

from __future__ import annotations

import threading

# Two loads at once may leave `PreTrainedModel.tie_weights` patched for good: every later load of
# the process then has an output layer without weights. Reentrant: saved edits load their base.
LOADING = threading.RLock()
