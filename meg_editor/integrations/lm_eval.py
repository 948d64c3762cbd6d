"""An edited model in lm-evaluation-harness: general ability after editing (table 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(
        "this module needs lm-evaluation-harness: pip install 'meg-editor[lm-eval]'"
    ) from error

from meg_editor.model.meg_model import MeGModel

Request = TypeVar("Request")
Result = TypeVar("Result")

_ROWS = 256


@register_model("meg")
class MeGLM(HFLM):  # type: ignore[misc]
    """A MeGModel as a model of the harness.

    The context of a request is its query, never the continuation whose likelihood is scored.
    Requests which are not about an edit, nearly all of a benchmark, are scored in the harness's own
    batches; those about an edit, context by context.

    Args:
        edited: a MeGModel, or the folder of one.
        kwargs: of `lm_eval.models.huggingface.HFLM`, such as `batch_size`.

    Raises:
        ValueError: the setting `routing` is "decoding".

    Example:
        >>> lm_eval.simple_evaluate(model=MeGLM(edited), tasks=["mmlu"])  # doctest: +SKIP
    """

    def __init__(self, edited: MeGModel | str | Path, **kwargs: Any) -> None:
        model = edited if isinstance(edited, MeGModel) else MeGModel.from_pretrained(edited)
        if model.hparams.routing == "decoding":
            raise ValueError(
                "expected a model with routing: prompt, got one that routes while it answers: the "
                "harness asks the base model, so fit it with routing=prompt"
            )
        super().__init__(pretrained=model.base, tokenizer=model.tokenizer, **kwargs)
        self.edited = model

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        def query(request: tuple[Any, list[int], list[int]]) -> str:
            strings, _, continuation = request
            # A rolling likelihood has no context: the text is the query.
            return str(strings[0]) if strings else self.tok_decode(continuation)

        def score(
            some: list[tuple[Any, list[int], list[int]]],
        ) -> list[tuple[float, bool]]:
            scores: list[tuple[float, bool]] = HFLM._loglikelihood_tokens(
                self, some, disable_tqdm=True, override_bs=override_bs
            )
            return scores

        return self._routed(requests, query, score)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        def generate(some: list[Any]) -> list[str]:
            texts: list[str] = HFLM.generate_until(self, some, disable_tqdm=disable_tqdm)
            return texts

        return self._routed(requests, lambda request: str(request.args[0]), generate)

    def _routed(
        self,
        requests: Sequence[Request],
        query: Callable[[Request], str],
        run: Callable[[list[Request]], list[Result]],
    ) -> list[Result]:
        """Results of `run` for all requests, in order, each with the neuron of its query."""
        rows: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            rows.setdefault(query(request), []).append(row)
        results: dict[int, Result] = {}
        plain: list[int] = []

        def run_rows(chosen: list[int]) -> None:
            batch = run([requests[row] for row in chosen])
            results.update(zip(chosen, batch, strict=True))

        queries = list(rows)
        for start in range(0, len(queries), _ROWS):
            chunk = queries[start : start + _ROWS]
            routing = self.edited.route(chunk)
            neurons = self.edited.neurons(routing)
            for i, text in enumerate(chunk):
                if neurons is None or not routing.is_edit[i]:
                    plain += rows[text]
                    continue
                with self.edited.applied(neurons[i : i + 1]):
                    run_rows(rows[text])
        if plain:
            run_rows(sorted(plain))
        return [results[row] for row in range(len(requests))]
