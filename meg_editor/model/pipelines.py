"""Pipelines of transformers take an edited model without a warning."""

from __future__ import annotations

import logging


class _UnsupportedModelFilter(logging.Filter):
    """Drops the warning of pipelines that MeGModel is not in transformers' list of models."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "The model 'MeGModel' is not supported" not in record.getMessage()


def silence_pipelines() -> None:
    """Drop that warning from now on, in the whole process."""
    logger = logging.getLogger("transformers.pipelines.base")
    if not any(isinstance(present, _UnsupportedModelFilter) for present in logger.filters):
        logger.addFilter(_UnsupportedModelFilter())
