"""What an edit costs each method: seconds, operations, memory and bytes, at its success.

    python examples/cost.py --settings-from examples/results/reference/world/report.json
    python examples/cost.py --model smollm2 --data counterfact --path counterfact.json --edits 32 \\
        --settings-from report.json --methods meg,horen,ft

All methods in one run, one after another. Each edits a quarter of --edits facts twice and --edits
facts once, others every time; then a quarter again with its operations counted. Columns:

- edits, paraphrases: right answers in percent after --edits edits (the target as whole words);
  no paraphrases where the data set has none of these facts
- once s: what the first run takes longer than the second: covariances, hypernetworks, a verifier
- s/edit: of a quarter, and of all, without that
- GFLOP/edit: multiplications and additions of matrix products, forward and backward
- of floor: how many times as long a quarter takes as so many in large matrix products of float32;
  less than 1 is possible where a method computes in bfloat16
- peak MB: memory of the process (of the GPU) beyond that of the model alone
- KB/edit: what is stored beside the model, without a text encoder and MeG's verifier, which are
  there once; methods that write into weights store whole matrices
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode
from what_methods_do import (
    cases_of,
    markdown,
    methods_of,
    read_options,
    right_answers,
    write_rows,
)

from meg_editor import load_model
from meg_editor.benchmark.methods import Method, edited
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation.cost import peak_memory, reset_peak_memory, stored_bytes
from meg_editor.runtime.artifacts import ArtifactStore


class Meter:
    """Edits one model by one method after another.

    Args:
        options: keywords of every method: what its fitting stages may see.
    """

    def __init__(self, model: Any, tokenizer: Any, options: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.snapshot = WeightSnapshot(model)

    def row(self, method: Method, cases: Sequence[EvaluationCase], edits: int) -> dict[str, Any]:
        """All columns of a method.

        Args:
            cases: at least 1.75 times as many as `edits`.
        """
        few = edits // 4
        first, second, third = (cases[n * few : (n + 1) * few] for n in range(3))
        many = cases[3 * few : 3 * few + edits]
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.dict(os.environ, MEG_EDITOR_CACHE=folder),  # nothing of an earlier run is there
        ):
            run = partial(self._run, method, ArtifactStore(Path(folder)))
            cold, warm = run(first)["seconds"], run(second)["seconds"]
            found = run(many)
            with FlopCounterMode(display=False) as counter:
                run(third, ask=False)
        operations = counter.get_total_flops() / few
        return {
            **{name: found[name] for name in ("edits", "paraphrases") if name in found},
            "once s": max(0.0, cold - warm),
            f"s/edit, {few}": warm / few,
            f"s/edit, {edits}": found["seconds"] / edits,
            "GFLOP/edit": operations / 1e9,
            "of floor": warm / few / (operations / self.rate()),
            "peak MB": found["peak"] / 1e6,
            "KB/edit": found["bytes"] / edits / 1000,
        }

    def _run(
        self,
        method: Method,
        store: ArtifactStore,
        cases: Sequence[EvaluationCase],
        ask: bool = True,
    ) -> dict[str, float]:
        """One way of editing: its seconds, and what became of it."""
        options = {**self.options, "store": store, "seed": 0}
        reset_peak_memory(self.model.device)
        idle = peak_memory(self.model.device)
        start = time.perf_counter()
        with edited(method, self.model, self.tokenizer, cases, self.snapshot, **options) as result:
            row = {
                "seconds": time.perf_counter() - start,
                "peak": peak_memory(self.model.device) - idle,
            }
            if ask:
                asked = [(case, case.request.prompt) for case in cases]
                others = [(case, text) for case in cases for text in case.paraphrases]
                row["edits"] = right_answers(result, self.tokenizer, asked)
                if others:
                    row["paraphrases"] = right_answers(result, self.tokenizer, others)
            row["bytes"] = stored_bytes(result, self.model)
        return row

    def rate(self, size: int = 1024) -> float:
        """Operations per second of a product of matrices in float32, the best of five."""
        matrix = torch.ones(size, size, device=self.model.device)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # waits for a GPU
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / min(seconds)


def main() -> None:
    """Run and print."""
    options, hparams = read_options("cost", __doc__)
    model, tokenizer = load_model(hparams)
    cases, facts = cases_of(options, model, tokenizer, options.edits // 4 * 3 + options.edits)
    meter = Meter(model, tokenizer, vars(facts))
    rows: dict[str, dict[str, Any]] = {}
    for method in methods_of(options, hparams):
        rows[method.name] = meter.row(method, cases, options.edits)
        print(method.name, rows[method.name], flush=True)
        write_rows("cost", options, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
