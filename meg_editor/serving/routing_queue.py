"""Routing of many prompts: those which wait are routed together, beside the answers."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from meg_editor.model.batching import neuron_rows
from meg_editor.model.meg_model import MeGModel

_BATCH = 32  # prompts
_LATEST = 2000  # scores of the histogram
_BINS = 20


Neuron = Tensor | None  # (P,) of a prompt; None: no edit is asked for


class RoutingQueue:
    """Routes prompts as they come, by the edits in force when they are looked at."""

    def __init__(self, model: MeGModel) -> None:
        self._model = model
        self._waiting: asyncio.Queue[tuple[str, asyncio.Future[Neuron]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "meg-editor-routing")
        self._worker: asyncio.Task[None] | None = None
        self.latest: deque[tuple[float, bool]] = deque(maxlen=_LATEST)  # score, whether an edit

    def start(self) -> None:
        """Start the task that routes."""
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop; what waits is not routed any more."""
        if self._worker is not None:
            self._worker.cancel()
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()
        self._thread.shutdown(wait=False)

    async def route(self, text: str) -> Neuron:
        """The neuron (P,) of the edit that a prompt asks for; None: of none.

        Raises:
            What the routing raises for this prompt.
        """
        future: asyncio.Future[Neuron] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((text, future))
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [each for each in batch if not each[1].done()]  # who asked may be gone
            if batch:
                await loop.run_in_executor(self._thread, self._answer, loop, batch)

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[str, asyncio.Future[Neuron]]],
    ) -> None:
        try:
            found = self._neurons([text for text, _ in batch])
        except Exception as error:
            if len(batch) > 1:  # the others are not touched by one that fails
                for each in batch:
                    self._answer(loop, [each])
                return
            loop.call_soon_threadsafe(_fail, batch[0][1], error)
            return
        for (_, future), neuron in zip(batch, found, strict=True):
            loop.call_soon_threadsafe(_give, future, neuron)

    @torch.no_grad()
    def _neurons(self, texts: list[str]) -> list[Neuron]:
        model = self._model
        if not model.edits:
            return [None] * len(texts)
        routing = model.route(texts)
        self.latest += zip(routing.score.tolist(), routing.is_edit.tolist(), strict=True)
        return neuron_rows(model, routing)

    @property
    def waiting(self) -> int:
        """Prompts that wait to be routed."""
        return self._waiting.qsize()

    def histogram(self) -> dict[str, object]:
        """Scores of the latest prompts in bins, and the threshold.

        Over [0, 1]; from the lowest to the highest where some are below 0, as minus an entropy.
        """
        latest = [(score, yes) for score, yes in list(self.latest) if math.isfinite(score)]
        low = min([0.0, *(score for score, _ in latest)])
        high = max(score for score, _ in latest) if low < 0 else 1.0
        width = (high - low or 1.0) / _BINS
        model = self._model
        bins: list[dict[str, float | int]] = [
            {"from": low + n * width, "to": low + (n + 1) * width, "edited": 0, "left_alone": 0}
            for n in range(_BINS)
        ]
        for score, is_edit in latest:
            place = min(_BINS - 1, int((score - low) / width))
            bins[place]["edited" if is_edit else "left_alone"] += 1
        return {
            "object": "histogram",
            "bins": bins,
            "threshold": model.router.threshold if model.edits else None,
            "count": len(latest),
        }


def _give(future: asyncio.Future[Neuron], neuron: Neuron) -> None:
    if not future.done():
        future.set_result(neuron)


def _fail(future: asyncio.Future[Neuron], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
