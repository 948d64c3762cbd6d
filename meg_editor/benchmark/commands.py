"""`meg-editor benchmark` and `meg-editor tables`, once their settings are read."""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark.methods import Method, resolve_method
from meg_editor.benchmark.paper_tables import run_tables
from meg_editor.benchmark.plots import check_matplotlib
from meg_editor.benchmark.report import write_report
from meg_editor.benchmark.runner import Benchmark, run_benchmark
from meg_editor.benchmark.search import SearchError, Trial, best_of, recorded, search
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import Dataset, EvaluationCase, MultiHopCase
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.splits import Split, split_cases, tuning_requests
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases, reference_split
from meg_editor.evaluation import questions_of
from meg_editor.integrations.easyedit.methods import NAMES as EASYEDIT
from meg_editor.integrations.easyedit.methods import easyedit_method
from meg_editor.lm.loading import load_model
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

# Beside the baselines; the bank is the upper bound of what retrieved neurons can do.
ALL = ("unedited", "meg", "meg-paper", "meg-bank")
_LOCALITY = 10  # locality prompts of a fact in trials, at most: CounterFact has 24


def benchmark_command(
    options: argparse.Namespace, hparams: MeGHyperParams, paper: MeGHyperParams
) -> None:
    """Methods side by side; prints the report."""
    names: list[str] = []
    for name in options.methods.split(","):
        names += [*ALL, *BASELINES] if name == "all" else [name]
    names = list(dict.fromkeys(names))
    # Resolved first: a wrong name is told before an hour of trials.
    resolved = {
        name: resolve_method(name, hparams, paper) for name in names if _baseline(name) is None
    }
    benchmark = _benchmark(options, hparams)
    benchmark = dataclasses.replace(benchmark, seeds=options.seeds, asked=options.ask)
    model, tokenizer = load_model(hparams)
    baselines = dict.fromkeys(own for name in names if (own := _baseline(name)))
    found, searches = _choose(list(baselines), benchmark, model, tokenizer, options)
    methods = []
    for name in names:
        own = _baseline(name)
        if own is None:
            methods.append(resolved[name])
        elif own in found:
            apply = BASELINES[own].apply if name == own else easyedit_method(own)
            methods.append(Method(name, apply, found[own]))
    if not methods:
        raise ValueError("--methods: every trial of every method failed, as told above")
    benchmark = dataclasses.replace(benchmark, methods=methods)
    cells = run_benchmark(benchmark, model, tokenizer, options.out)
    write_report(cells, options.out, searches, plots=options.plots)
    print((options.out / "report.md").read_text("utf-8"))


def _baseline(name: str) -> str | None:
    """The baseline whose settings a method has: "memit" and "easyedit:MEMIT" have those of memit.

    Raises:
        ValueError: EasyEdit's version of something which is not compared.
    """
    theirs, colon, own = name.partition(":")
    if colon and theirs == "easyedit":
        if own.lower() not in EASYEDIT:
            raise ValueError(f"method: expected easyedit: and one of {EASYEDIT}, got {name!r}")
        return own.lower()
    return name if name in BASELINES else None


def _choose(
    baselines: Sequence[str],
    benchmark: Benchmark,
    model: Any,
    tokenizer: Any,
    options: argparse.Namespace,
) -> tuple[dict[str, BaselineHyperParams], dict[str, list[Trial]]]:
    """The settings of baselines, and the trials which they are the best of: those of an earlier
    report, else new ones. A baseline all of whose trials fail is left out.
    """
    hparams = benchmark.hparams
    common = {
        "model_name": hparams.model_name,
        "prompt_template": hparams.prompt_template,
        "encoder_name": hparams.encoder_name,
    }
    searches = recorded(options.settings_from, baselines) if options.settings_from else {}
    if new := [name for name in baselines if name not in searches]:
        facts = benchmark.options["calibration"][: options.trial_edits]
        cases = [_trial_case(fact) for fact in facts]
        reader = PromptReader(tokenizer, hparams.prompt_template)
        questions = questions_of(model, tokenizer, cases, reader)  # the same for all trials of all
        extra = {**benchmark.options, "store": ArtifactStore(options.out / "stages"), "seed": 0}
        material = (model, tokenizer, cases, questions, common, options.trials, options.out, extra)
        searches |= {name: search(name, BASELINES[name], *material) for name in new}
    found = {}
    for name, trials in searches.items():
        try:
            found[name] = best_of(name, BASELINES[name], trials, common)
        except SearchError as error:  # the others are worth their hours all the same
            print(f"left out: {error}", flush=True)
    return found, searches


def _trial_case(fact: EditRequest) -> EvaluationCase:
    """A calibration fact as trials edit it; of its locality prompts some are drawn."""
    texts = fact.locality_prompts
    if len(texts) > _LOCALITY:
        texts = tuple(random.Random(fact.prompt).sample(texts, _LOCALITY))
    return EvaluationCase.from_request(dataclasses.replace(fact, locality_prompts=texts))


def tables_command(options: argparse.Namespace, hparams: MeGHyperParams) -> None:
    """The paper's tables and figures; prints them."""
    unke = DATASETS["unke"](options.unke) if options.unke else None
    mquake = DATASETS["mquake"](options.mquake) if options.mquake else None
    benchmark = _benchmark(options, hparams)
    model, tokenizer = load_model(hparams)
    run_tables(
        benchmark,
        model,
        tokenizer,
        options.out,
        unke=unke,
        mquake=mquake,
        only=options.only,
        long_answers=options.long_answers,
        plots=options.plots,
    )
    print((options.out / "tables.md").read_text("utf-8"))


def calibration_facts(options: argparse.Namespace, count: int) -> list[EditRequest]:
    """Up to `count` facts of a data set which no evaluation edits, with their paraphrases."""
    split, _ = _split(options)
    return tuning_requests(split.calibration, count, seed=0)


def _benchmark(options: argparse.Namespace, hparams: MeGHyperParams) -> Benchmark:
    if options.plots:
        check_matplotlib()  # not after an hour
    options.out.mkdir(parents=True, exist_ok=True)
    split, multi_hop = _split(options)
    draw = partial(edit_cases, load_world()) if options.data == "reference" else None
    return Benchmark(
        options.data, split, (), options.edits, hparams=hparams, multi_hop=multi_hop, draw=draw
    )


def _split(options: argparse.Namespace) -> tuple[Split, Sequence[MultiHopCase]]:
    """The facts of --data by their use, and its chains of facts."""
    if options.data == "reference":
        return reference_split(load_world()), ()
    data = _load(options.data, options.path)
    cases = without_conflicts(data.cases)
    if not data.multi_hop:  # chains need several facts about one subject
        cases = one_per_subject(cases)
    training = None
    if options.training_path:
        training = _load(options.data, options.training_path).cases
    return split_cases(cases, training), data.multi_hop


def _load(name: str, path: Path | None) -> Dataset:
    if name not in DATASETS:
        known = ", ".join(["reference", *DATASETS])
        raise ValueError(f"--data: expected one of {known}, got {name!r}")
    if path is None:
        raise ValueError(f"--path: {name} needs the file of the data set")
    return DATASETS[name](path)
