"""One cell of a benchmark: a method at a number of edits with a seed, and what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from meg_editor.evaluation.cost import Latency
from meg_editor.evaluation.metrics import GateMatrix, Pair
from meg_editor.runtime.text_files import json_types, read_json


@dataclass(frozen=True)
class ThresholdSweep:
    """The gate's calibration: percent answered as they should be, over its threshold.

    Attributes:
        threshold: the chosen one.
        balance: mean of Generality and Locality there.
        state_weight: weight of the hidden-state features.
        thresholds, generality, locality: (S,) values each.
    """

    threshold: float
    balance: float
    state_weight: float
    thresholds: list[float]
    generality: list[float]
    locality: list[float]


@dataclass(frozen=True)
class ScoreHistogram:
    """Gate scores in common bins.

    Attributes:
        threshold: lowest score of an edit.
        edges: (bins + 1,).
        reliability, generality, locality: (bins,) counts of edited prompts, paraphrases, others.
        measure: what the scores are, as `Router.measure`.
    """

    threshold: float
    edges: list[float]
    reliability: list[int]
    generality: list[int]
    locality: list[int]
    measure: str = "similarity"


@dataclass(frozen=True)
class DuplicateCount:
    """Pairs of edits which lie close together, and those of them with different targets."""

    pairs: int
    contradictory: int


@dataclass(frozen=True)
class Cell:
    """What was measured of one method; percentages, seconds and bytes.

    A number is NaN where the data set asks nothing of its kind, None where the method has none.

    Attributes:
        data, method, edits, seed: which cell this is.
        reliability, generality, locality, score: as `evaluation.Scores`.
        intervals: "reliability.ag" and so on -> confidence interval.
        worst_case_generality, locality_by_kind, retained_by_kind, portability_by_kind,
            trapped_by_kind, oracle_generality, gate, milliseconds_per_query: as
            `evaluation.Evaluation`.
        seconds_total: of `apply`, with those of stages that an earlier run finished.
        peak_memory: bytes.
        latency: "edited" and "unedited" -> of single queries.
        fluency: n-gram entropy in bits.
        key: digest of all the cell depends on.
        asked: number of evaluated edits; None: all.
        settings: hyper-parameters of the method.
        seconds: stage -> seconds when it ran.
        duplicates, already_correct, not_collected, resumed_stages: as `FitReport`.
        long_answers: "reliability", "generality" -> metric -> percent.
        multi_hop: MQuAKE's accuracies.
        forms, forms_answers: kind of prompt form -> right decisions and right answers, as
            `evaluation.forms.FormScores`.
        questions: kind of question -> how many were asked; None in cells written before.
        max_tokens: of a greedy answer; None in cells written before.
        sequential: "chunk", the number of edits that arrive at a time, and "carried", what the
            method keeps from chunk to chunk; None: all edits at once.
        forced: "token_accuracy" and "success" -> metric -> percent, as `evaluation.forced`.
        natural: metric -> "exact" and "tokens" -> percent, as `evaluation.natural`.

    Example:
        >>> half = {"ag": 50.0, "tf": 50.0}
        >>> cell = Cell.from_dict({
        ...     "data": "zsre", "method": "meg", "edits": 8, "seed": 0, "reliability": half,
        ...     "generality": half, "locality": half, "score": 50.0, "intervals": {},
        ...     "worst_case_generality": None, "locality_by_kind": {}, "retained_by_kind": {},
        ...     "portability_by_kind": {}, "trapped_by_kind": {}, "oracle_generality": None,
        ...     "gate": None, "milliseconds_per_query": 1.5, "seconds_total": 3.0,
        ...     "peak_memory": 2048, "latency": {}, "fluency": 5.0})
        >>> cell.generality.ag, cell.to_dict()["worst_case_generality"]
        (50.0, None)
    """

    data: str
    method: str
    edits: int
    seed: int
    reliability: Pair
    generality: Pair
    locality: Pair
    score: float
    intervals: dict[str, tuple[float, float]]
    worst_case_generality: float
    locality_by_kind: dict[str, Pair]
    retained_by_kind: dict[str, float]
    portability_by_kind: dict[str, float]
    trapped_by_kind: dict[str, float]
    oracle_generality: float | None
    gate: GateMatrix | None
    milliseconds_per_query: float
    seconds_total: float
    peak_memory: int
    latency: dict[str, Latency]
    fluency: float
    key: str | None = None
    asked: int | None = None
    settings: Any = None
    perplexity: float | None = None
    bytes_per_edit: float | None = None
    seconds: dict[str, float] | None = None
    seconds_per_edit: float | None = None
    duplicates: int | None = None
    already_correct: int | None = None
    not_collected: int | None = None
    resumed_stages: list[str] | None = None
    calibration: ThresholdSweep | None = None
    near_duplicates: DuplicateCount | None = None
    gate_scores: ScoreHistogram | None = None
    long_answers: dict[str, dict[str, float]] | None = None
    multi_hop: dict[str, float] | None = None
    forms: dict[str, float] | None = None
    forms_answers: dict[str, float] | None = None
    questions: dict[str, int] | None = None
    max_tokens: int | None = None
    sequential: dict[str, Any] | None = None
    forced: dict[str, dict[str, float]] | None = None
    natural: dict[str, dict[str, float]] | None = None

    def metric(self, name: str) -> Pair:
        """AG and TF of "reliability", "generality" or "locality"."""
        pair: Pair = getattr(self, name)
        return pair

    def to_dict(self) -> dict[str, Any]:
        """JSON types: null for NaN; fields with a default are left out where they are None."""
        fields = dataclasses.fields(self)
        optional = {entry.name for entry in fields if entry.default is not MISSING}
        values = {name: getattr(self, name) for name in (entry.name for entry in fields)}
        return {
            name: json_types(value)
            for name, value in values.items()
            if value is not None or name not in optional
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """The inverse of `to_dict`, also of cells that were written before names changed.

        Raises:
            ValueError: missing or unknown entries, named in the message.
        """
        entries = {_RENAMED.get(name, name): value for name, value in values.items()}
        fields = dataclasses.fields(cls)
        missing = {f.name for f in fields if f.default is MISSING} - set(entries)
        unknown = set(entries) - {f.name for f in fields}
        if missing or unknown:
            raise ValueError(
                f"not a cell of a benchmark: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        for name, read in _READERS.items():
            if entries.get(name) is not None or name in _NUMBERS:
                entries[name] = read(entries[name])
        return cls(**entries)


def read_cells(path: Path) -> list[Cell]:
    """The cells of a report.json.

    Raises:
        ValueError: there is no such file, it is damaged, or it is no report of a benchmark.
    """
    content = read_json(path, "measure it")
    if not isinstance(content, dict) or "cells" not in content:
        raise ValueError(f"expected the report.json of a benchmark, got {path}")
    return [Cell.from_dict(cell) for cell in content["cells"]]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _pair(value: Mapping[str, float | None]) -> Pair:
    return Pair(_number(value["ag"]), _number(value["tf"]))


def _each(read: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda values: {name: read(value) for name, value in values.items()}


_RENAMED = {"already_answered": "already_correct"}  # old name -> name
_NUMBERS = ("score", "worst_case_generality")
_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys((*_NUMBERS, "perplexity"), _number),
    **dict.fromkeys(("reliability", "generality", "locality"), _pair),
    "intervals": _each(tuple),
    "locality_by_kind": _each(_pair),
    "retained_by_kind": _each(_number),
    "portability_by_kind": _each(_number),
    "trapped_by_kind": _each(_number),
    "gate": lambda value: GateMatrix(**value),
    "latency": _each(lambda value: Latency(**value)),
    "calibration": lambda value: ThresholdSweep(**value),
    "near_duplicates": lambda value: DuplicateCount(**value),
    "gate_scores": lambda value: ScoreHistogram(**value),
}
