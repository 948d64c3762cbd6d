"""Choose the settings of a baseline on the calibration facts: as many trials for every method.

The first half of the trials is spread over the space, each of the others changes one setting of the
best so far: random settings alone seldom meet the few which suit a model.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.registry import Baseline, Space
from meg_editor.benchmark.methods import Method, edited
from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation import Question, evaluate
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.neuron import count_layers
from meg_editor.runtime.artifacts import digest
from meg_editor.runtime.text_files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Trial:
    """Settings and what came out on calibration facts, in percent; None where the method failed."""

    settings: dict[str, Any]
    score: float | None
    metrics: list[float]
    seconds: float
    failure: str | None = None

    def __str__(self) -> str:
        told = self.failure if self.score is None else f"Score {self.score:.1f}"
        return f"{told} ({self.seconds:.0f} s) {self.settings}"

    @property
    def rank(self) -> tuple[float, float]:
        """The Score, and where it is 0 for both the mean of the six metrics."""
        if self.score is None:
            return (-1.0, -1.0)
        return self.score, sum(self.metrics) / len(self.metrics)


class SearchError(ValueError):
    """There are no settings to take."""


def search(
    name: str,
    baseline: Baseline,
    model: Any,
    tokenizer: Any,
    cases: Sequence[EvaluationCase],
    questions: Sequence[Question],
    common: dict[str, Any],
    count: int,
    out: Path,
    options: dict[str, Any],
    say: Callable[[str], None] = print,
) -> list[Trial]:
    """Edit `cases` with `count` settings of the baseline's space, or all.

    Trials are kept in `out`/search and not run again while they would be the same.

    Args:
        cases: calibration facts, which no evaluation edits.
        questions: about them.
        common: settings which every method shares, such as prompt_template.
        options: keywords for the method.
    """
    space = baseline.space(count_layers(model))
    path = out / "search" / f"{name}.json"
    facts = [dataclasses.astuple(case.request) for case in cases]
    parts = [name, fingerprint(model), facts, common, dict(baseline.fixed), space, count]
    key = digest(parts)
    found = read_json(path, "search") or {}
    trials = [Trial(**trial) for trial in found["trials"]] if found.get("key") == key else []
    while (settings := proposal(space, trials, count)) is not None:
        method = Method(name, baseline.apply, baseline.hparams({**common, **settings}))
        trials.append(_try(method, settings, model, tokenizer, cases, questions, options))
        write_json(path, {"key": key, "trials": [dataclasses.asdict(t) for t in trials]})
        say(f"{name:14} trial {len(trials)} of {count}: {trials[-1]}")
    return trials


def best_of(
    name: str, baseline: Baseline, trials: Sequence[Trial], common: dict[str, Any]
) -> BaselineHyperParams:
    """The settings of the best trial, with those which every method shares.

    Raises:
        SearchError: every trial failed; the message has the reason of the last one.
    """
    best = max(trials, key=lambda trial: trial.rank)
    if best.score is None:
        told = f"{name}: every trial failed, the last with: {trials[-1].failure}"
        raise SearchError(told)
    return baseline.hparams({**common, **best.settings})


def recorded(report: Path, names: Sequence[str]) -> dict[str, list[Trial]]:
    """The trials of those of the baselines `names` which an earlier report.json has.

    Raises:
        ValueError: there is no such file, or it is no report.
    """
    content = read_json(report, "search")
    if not isinstance(content, dict) or "searches" not in content:
        raise ValueError(f"--settings-from: expected the report.json of a benchmark, got {report}")
    found = {name: content["searches"].get(name) for name in names}
    return {name: [Trial(**trial) for trial in trials] for name, trials in found.items() if trials}


def proposal(space: Space, trials: Sequence[Trial], count: int) -> dict[str, Any] | None:
    """The settings to try after `trials`; None after `count` of them, or if there are no others."""
    if len(trials) >= count:
        return None
    spread = _spread(space, -(-count // 2))
    if len(trials) < len(spread):
        return spread[len(trials)]
    tried = [trial.settings for trial in trials]
    left = [settings for settings in _every(space) if settings not in tried]
    best = max(trials, key=lambda trial: trial.rank).settings
    near = [s for s in left if sum(s[name] != best[name] for name in space) == 1]
    return random.Random(len(trials)).choice(near or left) if left else None


def _spread(space: Space, count: int) -> list[dict[str, Any]]:
    """`count` different settings, or all; the values of each setting come about equally often."""
    rng, chosen = random.Random(0), list[dict[str, Any]]()
    count = min(count, math.prod(map(len, space.values())))
    columns = {name: _shuffled(values, rng) for name, values in space.items()}
    while len(chosen) < count:
        settings = {name: next(column) for name, column in columns.items()}
        if settings not in chosen:
            chosen.append(settings)
    return chosen


def _shuffled(values: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """All of them in some order, then all in another, without end."""
    while True:
        yield from rng.sample(values, len(values))


def _every(space: Space) -> list[dict[str, Any]]:
    rows = itertools.product(*space.values())
    return [dict(zip(space, row, strict=True)) for row in rows]


def _try(
    method: Method,
    settings: dict[str, Any],
    model: Any,
    tokenizer: Any,
    cases: Sequence[EvaluationCase],
    questions: Sequence[Question],
    options: dict[str, Any],
) -> Trial:
    start = time.perf_counter()
    try:
        with edited(method, model, tokenizer, cases, **options) as result:
            scores = evaluate(result, tokenizer, cases, questions=questions).scores
    except (ArithmeticError, ValueError, RuntimeError) as error:
        return Trial(settings, None, [], time.perf_counter() - start, str(error))
    pairs = (scores.reliability, scores.generality, scores.locality)
    metrics = [value for pair in pairs for value in (pair.ag, pair.tf)]
    return Trial(settings, scores.score, metrics, time.perf_counter() - start)
