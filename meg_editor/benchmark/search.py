"""Hyper-parameter search of a baseline on calibration facts, with as many trials for every method.

The first trial has the authors' settings. Up to half of the trials are spread over the space (a
Latin square), each of the others changes one setting of the best so far: random search alone seldom
meets the few settings that fit a model.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.registry import Baseline, Space
from meg_editor.benchmark.methods import Method, edited, package_digest
from meg_editor.benchmark.sequential import SequentialError, sequential
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation import Question, evaluate
from meg_editor.evaluation.metrics import harmonic_mean
from meg_editor.lm.answers import end_tokens
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.artifacts import digest
from meg_editor.runtime.text_files import read_json, write_json


@dataclass(frozen=True)
class Trial:
    """Settings of a baseline and its metrics on calibration facts, in percent.

    Attributes:
        score: harmonic mean of the six metrics; None where the method failed.
        metrics: AG and TF of Reliability, Generality and Locality.
        failure: the error's message.
    """

    settings: dict[str, Any]
    score: float | None
    metrics: list[float]
    seconds: float
    failure: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Of JSON, which has null for NaN: a metric that the facts have no questions for."""
        metrics = [math.nan if metric is None else metric for metric in values["metrics"]]
        score = values["score"]
        if score is None and values.get("failure") is None:
            score = math.nan
        return cls(**{**values, "metrics": metrics, "score": score})

    def __str__(self) -> str:
        result = self.failure if self.score is None else f"Score {self.score:.1f}"
        return f"{result} ({self.seconds:.0f} s) {self.settings}"

    @property
    def rank(self) -> float:
        """The Score with each metric at least 1 %: a Score of 0 says nothing of the other five.

        Of the metrics which there are questions for.
        """
        if self.score is None:
            return -1.0
        measured = [metric for metric in self.metrics if not math.isnan(metric)]
        return harmonic_mean([max(1.0, metric) for metric in measured])


class SearchError(ValueError):
    """Every trial of a baseline failed."""


@dataclass(frozen=True)
class SearchMaterial:
    """What all trials of all baselines have in common.

    Attributes:
        model, tokenizer: the unedited model.
        cases: calibration facts, which no evaluation edits.
        questions: about them.
        common: settings which every method shares, such as prompt_template.
        options: keywords for the methods.
        sequential: facts arrive in chunks of so many, as in the benchmark; None: all at once.
    """

    model: CausalLM
    tokenizer: Tokenizer
    cases: Sequence[EvaluationCase]
    questions: Sequence[Question]
    common: Mapping[str, Any]
    options: Mapping[str, Any]
    sequential: int | None = None

    @property
    def reader(self) -> PromptReader:
        """Has the prompt template."""
        return PromptReader(self.tokenizer, self.common.get("prompt_template", "{}"))

    @cached_property
    def snapshot(self) -> WeightSnapshot:
        """The weights to which every trial returns, also one that fails half-way."""
        return WeightSnapshot(self.model)

    @cached_property
    def fingerprint(self) -> dict[str, list[float]]:
        """Sampled weights, for the key of a search."""
        return fingerprint(self.model)


def search(
    name: str,
    baseline: Baseline,
    material: SearchMaterial,
    count: int,
    out: Path,
    report: Callable[[str], None] = print,
) -> list[Trial]:
    """Edit the facts of `material` with `count` settings of the baseline's space, or all.

    Trials are stored in `out`/search and not run again while all they depend on is the same:
    weights, facts with their questions, what the fitting stages may see, space, and code
    (`package_digest`).

    Raises:
        SequentialError: the baseline cannot take its edits as `material.sequential` says.
    """
    first, space = baseline.tried(material.model)
    protocol = "" if material.sequential is None else f"-sequential-{material.sequential}"
    path = out / "search" / f"{name}{protocol}.json"
    key = digest(
        [
            name,
            material.fingerprint,
            sorted(end_tokens(material.model, material.tokenizer)),
            list(material.cases),
            dict(material.common),
            {name: value for name, value in material.options.items() if name != "store"},
            dict(baseline.fixed),
            first,
            space,
            count,
            Method(name, baseline.apply).code,
            package_digest(),
            *([protocol] if protocol else []),
        ]
    )
    stored = read_json(path, "search") or {}
    known = stored["trials"] if stored.get("key") == key else []
    trials = [Trial.from_dict(trial) for trial in known]
    while (settings := proposal(space, trials, count, first)) is not None:
        hparams = baseline.hparams({**material.common, **settings})
        trials.append(_try(Method(name, baseline.apply, hparams), settings, material))
        write_json(path, {"key": key, "trials": trials})
        report(f"{name:14} trial {len(trials)} of {count}: {trials[-1]}")
    return trials


def best_of(
    name: str, baseline: Baseline, trials: Sequence[Trial], common: Mapping[str, Any]
) -> BaselineHyperParams:
    """The settings of the best trial, with those which every method shares.

    Raises:
        SearchError: there is none, or every trial failed; the message has the reason of the last.
    """
    if not trials:
        raise SearchError(f"{name}: expected at least one trial, got none: raise --trials")
    best = max(trials, key=lambda trial: trial.rank)
    if best.score is None:
        raise SearchError(f"{name}: every trial failed, the last with: {trials[-1].failure}")
    return baseline.hparams({**common, **best.settings})


def recorded(report: Path, names: Sequence[str]) -> dict[str, list[Trial]]:
    """Trials in an earlier report.json, of those baselines among `names` which it has.

    Raises:
        ValueError: there is no such file, or it is no report.
    """
    content = read_json(report, "search")
    if not isinstance(content, dict) or "searches" not in content:
        raise ValueError(f"--settings-from: expected the report.json of a benchmark, got {report}")
    searches = {name: content["searches"].get(name) for name in names}
    return {name: [*map(Trial.from_dict, trials)] for name, trials in searches.items() if trials}


def proposal(
    space: Space, trials: Sequence[Trial], count: int, first: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Settings to try after `trials`; None after `count` of them, or if the space is exhausted.

    Args:
        first: settings to begin with.
    """
    if len(trials) >= count:
        return None
    half = -(-count // 2)
    spread = _spread(space, half)
    if first is not None:
        spread = [dict(first), *(settings for settings in spread if settings != first)][:half]
    if len(trials) < len(spread):
        return spread[len(trials)]
    tried = [trial.settings for trial in trials]
    left = [settings for settings in _every(space) if settings not in tried]
    best = max(trials, key=lambda trial: trial.rank).settings
    near = [s for s in left if sum(s[name] != best[name] for name in space) == 1]
    return random.Random(len(trials)).choice(near or left) if left else None


def _spread(space: Space, count: int) -> list[dict[str, Any]]:
    """`count` different settings, or all; each value of a setting is used about equally often."""
    rng, chosen = random.Random(0), list[dict[str, Any]]()
    count = min(count, math.prod(map(len, space.values())))
    columns = {name: _shuffled(values, rng) for name, values in space.items()}
    while len(chosen) < count:
        settings = {name: next(column) for name, column in columns.items()}
        if settings not in chosen:
            chosen.append(settings)
    return chosen


def _shuffled(values: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """Random permutations of `values`, one after the other, without end."""
    while True:
        yield from rng.sample(values, len(values))


def _every(space: Space) -> list[dict[str, Any]]:
    rows = itertools.product(*space.values())
    return [dict(zip(space, row, strict=True)) for row in rows]


def _try(method: Method, settings: dict[str, Any], material: SearchMaterial) -> Trial:
    m, start = material, time.perf_counter()
    if m.sequential is not None:
        method = sequential(method, m.sequential)
    try:
        with edited(method, m.model, m.tokenizer, m.cases, m.snapshot, **m.options) as result:
            evaluation = evaluate(
                result, m.tokenizer, m.cases, questions=m.questions, reader=m.reader
            )
            scores = evaluation.scores
    except SequentialError:  # no settings help
        raise
    except Exception as error:  # whatever a method raises
        usual = isinstance(error, (ArithmeticError, ValueError, RuntimeError))
        failure = str(error) if usual else f"{type(error).__name__}: {error}"
        return Trial(settings, None, [], time.perf_counter() - start, failure)
    pairs = (scores.reliability, scores.generality, scores.locality)
    metrics = [value for pair in pairs for value in (pair.ag, pair.tf)]
    return Trial(settings, scores.score, metrics, time.perf_counter() - start)
