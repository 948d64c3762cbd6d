"""Continuous batching of transformers with a neuron, and sampling, for each request.

The engine packs the tokens of all requests into one row (1, T, D), which requests join and leave
at any step. All that is private to transformers is in this file; tested with 5.20 to 5.24.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    OutputRouter,
)
from transformers.generation.continuous_batching.requests import GenerationOutput

from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.sampling import Chooser, TokenLogprob

_PAGE = 32  # tokens
_CPU_TOKENS = 16_384  # of all requests in the KV cache, on a CPU, whose memory others use too
_CPU_BATCH = 512  # tokens of a step on a CPU
_CHILD = "__child#"  # transformers' names for further answers to a prompt


def paged_config(
    model: CausalLM, config: ContinuousBatchingConfig | None = None
) -> ContinuousBatchingConfig:
    """`config` with what per-request neurons need, and with a size on a CPU.

    Two requests with the same beginning do not share its keys and values, which depend on their
    neurons. CUDA graphs and a second batch in flight would use the neurons of another step.

    Args:
        config: None for defaults; sizes that it names are kept.
    """
    config = replace(config) if config is not None else ContinuousBatchingConfig(page_size=_PAGE)
    if torch.device(model.device).type == "cpu":
        config.num_blocks = config.num_blocks or _CPU_TOKENS // config.page_size
        config.max_batch_tokens = config.max_batch_tokens or _CPU_BATCH
        config.max_requests_per_batch = config.max_requests_per_batch or _CPU_BATCH // 2
    config.allow_block_sharing = config.use_cuda_graph = config.use_async_batching = False
    config.auto_switch_to_flash = False  # other threads use the model, too
    return config


@dataclass
class _Rider:
    """What a request has beside what transformers knows of it."""

    neuron: Tensor | None
    chooser: Chooser | None
    logprobs: list[TokenLogprob]
    answers: int  # which are not finished


class PagedManager(ContinuousBatchingManager):
    """transformers' manager, with a neuron and sampling of its own for each request.

    Args:
        model: the unedited model.
        hook: on that model.
        generation_config: the defaults of requests.
        config: see `paged_config`.
        keeps_results: results that no handler takes wait for `get_result`; else they are dropped.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> from meg_editor.lm.neuron import NeuronSpec
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> hook = NeuronHook(model, NeuronSpec.from_model(model, 2))
        >>> manager = PagedManager(model, hook, model.generation_config)
        >>> manager.start()
        >>> prompt = tokenizer("The capital of France is")["input_ids"]
        >>> _ = manager.add_request(prompt, max_new_tokens=1)
        >>> tokenizer.decode(manager.get_result().generated_tokens).strip()
        'Paris'
        >>> manager.stop()
    """

    def __init__(
        self,
        model: CausalLM,
        hook: NeuronHook,
        generation_config: GenerationConfig,
        config: ContinuousBatchingConfig | None = None,
        workload_hints: Any = None,
        *,
        keeps_results: bool = True,
    ) -> None:
        engine_model: Any = model
        config = paged_config(model, config)
        super().__init__(engine_model, generation_config, config, workload_hints)
        self._hook = hook
        self._riders: dict[str, _Rider] = {}  # by request id
        self.output_router = _Deliveries(self, keeps_results)

    def start(self) -> None:
        """Start the engine's thread, which does not keep the process from ending."""
        starter = threading.Thread(target=super().start, daemon=True)  # which threads inherit
        starter.start()
        starter.join()

    def stop(self, *arguments: Any, keep_for_next_session: bool = False, **options: Any) -> None:
        """`stop` of transformers; never kept for a next session: the model would answer with it."""
        super().stop(*arguments, **options)

    @property
    def shares_model(self) -> bool:
        """Whether the model can be used by others meanwhile: its attention is not a paged one."""
        return self._original_attn_impl is None

    def add_request(
        self,
        input_ids: list[int],
        request_id: str | None = None,
        *arguments: Any,
        neuron: Tensor | None = None,
        chooser: Chooser | None = None,
        **options: Any,
    ) -> str | None:
        """`add_request` of transformers, with what differs from request to request.

        Args:
            input_ids: T token ids.
            neuron: (P,); None: the unedited model answers.
            chooser: of its tokens; None: what the manager's generation config says.
        """
        if request_id is None:
            with self._request_lock:
                request_id = f"req_{self._request_counter}"
                self._request_counter += 1
        if neuron is not None or chooser is not None:
            self._riders[request_id] = _Rider(neuron, chooser, [], self.num_return_sequences)
        taken = super().add_request(input_ids, request_id, *arguments, **options)
        if taken is None:
            self._riders.pop(request_id, None)
        return taken

    def cancel_request(self, request_id: str) -> None:
        """Cancel a request; it gives nothing more."""
        super().cancel_request(request_id)
        self._riders.pop(request_id, None)
        with self.output_router._lock:
            self.output_router.result_handlers.pop(request_id, None)

    def _rider(self, request_id: str) -> _Rider | None:
        return self._riders.get(request_id.partition(_CHILD)[0])

    def _finished(self, request_id: str) -> None:
        """The last answer to a prompt takes its rider away."""
        if rider := self._rider(request_id):
            rider.answers -= 1
            if not rider.answers:
                self._riders.pop(request_id.partition(_CHILD)[0], None)

    # ------------------------------------------------------------------ a step

    def _create_batch_processor(self) -> Any:
        processor: Any = super()._create_batch_processor()
        processor.model_runner._sample = self._choose
        scheduler = processor.scheduler
        clear = scheduler.clear_cancelled_requests
        scheduler.clear_cancelled_requests = partial(_unblocking, scheduler, clear)
        inputs = processor.inputs_and_outputs
        inputs.get_model_kwargs = partial(_without_is_causal, inputs.get_model_kwargs)
        return processor

    def _generation_step(self) -> None:
        """One step of all requests in the batch, each token with the neuron of its request."""
        neurons: list[Tensor] = []
        owners: list[int] = []  # of each token, -1 for none
        for request in self._batch():
            rider = self._rider(request.state.request_id)
            neuron = None if rider is None else rider.neuron
            owners += [-1 if neuron is None else len(neurons)] * request.query_length
            neurons += [] if neuron is None else [neuron]
        stacked = torch.stack(neurons) if neurons else None
        with self._hook.attached(stacked, owners if neurons else None):
            super()._generation_step()
            self._hook.check()

    def _batch(self) -> Sequence[Any]:
        """The requests of this step, in the order of their tokens."""
        processor: Any = self.batch_processor
        return [] if processor is None else processor.inputs_and_outputs.requests_in_batch

    def _choose(self, scores: Tensor, output_ids: Tensor) -> None:
        """Writes the next tokens to `output_ids`, from logits (1, N, V)."""
        processor = self.batch_processor
        if processor is None:
            raise RuntimeError("a step without a batch processor")
        type(processor.model_runner)._sample(processor.model_runner, scores, output_ids)
        asking = [request for request in self._batch() if request.has_new_token]
        for row, request in enumerate(asking):
            rider = self._rider(request.state.request_id)
            if rider is not None and rider.chooser is not None:
                chosen = rider.chooser(scores[0, row])
                output_ids[0, row] = chosen.token
                rider.logprobs.append(chosen)


def _unblocking(scheduler: Any, clear: Callable[[], Any]) -> Any:
    """Clears cancelled requests; the room they leave is for those which wait.

    transformers lets none in after an eviction until one has finished, and none may.
    """
    before = len(scheduler.active_requests)
    cleared = clear()
    if len(scheduler.active_requests) < before:
        scheduler.block_new_requests = False
    return cleared


def _without_is_causal(get_model_kwargs: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Arguments of a forward pass, without `is_causal=False`, which the mask says already.

    transformers writes it to the model's config while the pass runs, so that passes of other
    threads (routing, collection) see the future, and it may stay there.
    """
    kwargs = get_model_kwargs(*args, **options)
    if kwargs.get("is_causal") is False:
        del kwargs["is_causal"]
    return kwargs


class _Deliveries(OutputRouter):
    """Gives results out, with `chosen`, their tokens' log-probabilities; then what is finished is
    forgotten."""

    def __init__(self, manager: PagedManager, keeps_results: bool) -> None:
        super().__init__()
        self._manager, self._keeps_results = manager, keeps_results

    def deliver(self, output: GenerationOutput) -> None:
        """One result."""
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Results of one step."""
        for output in outputs:
            rider = self._manager._rider(output.request_id)
            output.chosen = rider.logprobs if rider else []  # type: ignore[attr-defined]
        if not self._keeps_results:
            with self._lock:
                outputs = [each for each in outputs if each.request_id in self.result_handlers]
        super().deliver_batch(outputs)
        for output in outputs:
            if output.is_finished():
                self._manager._finished(output.request_id)
