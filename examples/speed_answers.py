"""Parts of speed.py: what answers take, with and without MeG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from statistics import median, quantiles
from typing import Any

from speed_collection import Machine, clock

from meg_editor.lm.tokens import left_padded

TOKENS = 20  # of an answer
Row = dict[str, Any]


def table(columns: str, rows: Iterable[Sequence[Any]]) -> list[Row]:
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]


def answer_times(
    meg: Any, batches_by_kind: dict[str, list[list[str]]], rounds: int
) -> dict[str, list[Any]]:
    """For each kind of batches, in turn, milliseconds (unedited answer, decision, answer).

    A decision is routing and generation, an answer has TOKENS tokens. What drifts hits all alike.
    Neurons come from the cache only for kinds that end in "again", right after the first time.
    """
    times: dict[str, list[Any]] = {kind: [] for kind in batches_by_kind}
    settings = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}
    for turn in range(rounds + 1):
        for kind, batches in batches_by_kind.items():
            queries, taken = batches[turn % len(batches)], []
            batch = left_padded(meg.tokenizer, queries, meg.device)
            own, base = (partial(s.generate, **batch, **settings) for s in (meg, meg.base))
            for run in (base, partial(meg.decide, queries), own):
                if not kind.endswith("again"):
                    meg.neuron_cache.clear()
                start = clock(meg.device)
                run()
                taken.append(1000 * (clock(meg.device) - start))
            times[kind] += [taken] if turn else []  # the first round warms up
    return times


def compare_answers(
    meg: Any, machine: Machine, kinds: dict[str, list[str]], rounds: int
) -> list[Row]:
    """Latency and throughput by kind of query, one at once and eight, with and without MeG."""
    names = ("edited", "edited again", "close to an edit", "unrelated")
    batches = {name: [[text] for text in kinds[name.removesuffix(" again")]] for name in names}
    batches |= {f"8 {kind}": [kinds[kind][:8]] for kind in ("edited", "unrelated")}
    weights, rows = list(meg.base.parameters()), []
    moved = sum(p.nbytes for p in weights) / machine.moved
    worked = 2 * sum(p.numel() for p in weights) / machine.rate
    for kind, runs in answer_times(meg, batches, rounds).items():
        base, decisions, own = zip(*runs, strict=True)
        times, count = (median(base), median(own)), len(batches[kind][0])
        cuts = quantiles(decisions, n=20, method="inclusive")
        overhead = 100 * median(mine - plain for plain, _, mine in runs) / times[0]
        tokens = (1000 * count * TOKENS / time for time in times)
        floor = TOKENS * max(moved, count * worked)
        rows.append((kind, cuts[9], cuts[18], *times, floor, overhead, *tokens))
    columns = (
        "query, decision p50, decision p95, base ms, MeG ms, floor, overhead %, base tok/s, "
        "MeG tok/s"
    )
    return table(columns, rows)
