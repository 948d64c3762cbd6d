"""How the rate of learning falls."""

from __future__ import annotations

import math


def cosine(progress: float) -> float:
    """From 1 to 0 while `progress` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
