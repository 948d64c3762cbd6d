"""`meg-editor benchmark` and `meg-editor tables`, once their settings are read."""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark.definition import Benchmark, FittingFacts
from meg_editor.benchmark.method_spec import MethodSpec
from meg_editor.benchmark.paper_tables import run_tables
from meg_editor.benchmark.plots import check_matplotlib
from meg_editor.benchmark.report import write_report
from meg_editor.benchmark.runner import run_benchmark
from meg_editor.benchmark.search import (
    SearchError,
    SearchMaterial,
    Trial,
    best_of,
    recorded,
    search,
)
from meg_editor.benchmark.sequential import SequentialError
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import Dataset, EvaluationCase, MultiHopCase
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.splits import Split, split_cases, tuning_requests
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases, reference_split
from meg_editor.evaluation import questions_of
from meg_editor.lm.loading import load_model
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

_LOCALITY = 10  # maximum number of locality prompts of a fact in trials: CounterFact has 24


def benchmark_command(
    options: argparse.Namespace, hparams: MeGHyperParams, paper: MeGHyperParams, command: str
) -> None:
    """Methods side by side; prints the report, which says of which command line it is."""
    specs = MethodSpec.parse_list(options.methods)
    # Before hours of trials: a wrong name, a missing file.
    given = {spec: spec.resolve(hparams, paper) for spec in specs if not spec.searched}
    forms = load_forms(options.forms) if options.forms else ()
    split, multi_hop = _split(options)
    _prepare(options)
    facts = FittingFacts.of(split)
    model, tokenizer = load_model(hparams)
    names = list(dict.fromkeys(spec.searched for spec in specs if spec.searched))
    chosen, searches = _choose(names, facts, hparams, model, tokenizer, options)
    methods = [
        given[spec] if spec in given else spec.resolve(hparams, paper, chosen)
        for spec in specs
        if spec in given or spec.searched in chosen
    ]
    if not methods:
        raise ValueError("--methods: no method can be measured, see the messages above")
    benchmark = Benchmark(
        options.data,
        split,
        methods,
        options.edits,
        options.seeds,
        facts,
        hparams,
        multi_hop,
        max_asked=options.ask,
        sample=_sampler(options),
        forms=forms,
        sequential=options.sequential,
        natural=options.judge == "natural",
    )
    cells = run_benchmark(benchmark, model, tokenizer, options.out)
    if not cells:
        raise ValueError("--methods: no method could be measured, see the messages above")
    write_report(cells, options.out, searches, plots=options.plots, command=command)
    print((options.out / "report.md").read_text("utf-8"))


def _choose(
    baselines: Sequence[str],
    facts: FittingFacts,
    hparams: MeGHyperParams,
    model: CausalLM,
    tokenizer: Tokenizer,
    options: argparse.Namespace,
) -> tuple[dict[str, BaselineHyperParams], dict[str, list[Trial]]]:
    """Settings of baselines, and the trials which they are the best of.

    Trials are those of an earlier report, else new ones. A baseline all of whose trials fail, or
    which cannot take its edits one after another as --sequential wants it, is left out.
    """
    common = {
        "model_name": hparams.model_name,
        "prompt_template": hparams.prompt_template,
        "encoder_name": hparams.encoder_name,
    }
    searches = recorded(options.settings_from, baselines) if options.settings_from else {}
    if new := [name for name in baselines if name not in searches]:
        cases = [_trial_case(fact) for fact in facts.calibration[: options.trial_edits]]
        reader = PromptReader(tokenizer, hparams.prompt_template)
        material = SearchMaterial(
            model,
            tokenizer,
            cases,
            questions_of(model, tokenizer, cases, reader),  # the same for all trials of all
            common,
            {**vars(facts), "store": ArtifactStore(options.out / "stages"), "seed": 0},
            options.sequential,
        )
        for name in new:
            baseline = BASELINES[name]
            try:
                searches[name] = search(name, baseline, material, options.trials, options.out)
            except SequentialError as error:
                print(f"left out: {error}", flush=True)
    chosen = {}
    for name, trials in searches.items():
        try:
            chosen[name] = best_of(name, BASELINES[name], trials, common)
        except SearchError as error:  # the others are worth their hours all the same
            print(f"left out: {error}", flush=True)
    return chosen, searches


def _trial_case(fact: EditRequest) -> EvaluationCase:
    """A calibration fact as trials edit it, with a sample of its locality prompts."""
    texts = fact.locality_prompts
    if len(texts) > _LOCALITY:
        texts = tuple(random.Random(fact.prompt).sample(texts, _LOCALITY))
    return EvaluationCase.from_request(dataclasses.replace(fact, locality_prompts=texts))


def tables_command(options: argparse.Namespace, hparams: MeGHyperParams, command: str) -> None:
    """The paper's tables and figures; prints them."""
    unke = DATASETS["unke"](options.unke) if options.unke else None
    mquake = DATASETS["mquake"](options.mquake) if options.mquake else None
    split, multi_hop = _split(options)
    _prepare(options)
    benchmark = Benchmark(
        options.data,
        split,
        (),
        options.edits,
        hparams=hparams,
        multi_hop=multi_hop,
        sample=_sampler(options),
    )
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
        command=command,
    )
    print((options.out / "tables.md").read_text("utf-8"))


def calibration_facts(options: argparse.Namespace, count: int) -> list[EditRequest]:
    """Up to `count` facts of a data set, with paraphrases, which no evaluation edits."""
    split, _ = _split(options)
    return tuning_requests(split.calibration, count, seed=0)


def _prepare(options: argparse.Namespace) -> None:
    if options.plots:
        check_matplotlib()  # not after an hour
    options.out.mkdir(parents=True, exist_ok=True)


def _sampler(options: argparse.Namespace) -> Callable[[int, int], list[EvaluationCase]] | None:
    """Edits of the reference world are sampled from the world itself."""
    return partial(edit_cases, load_world()) if options.data == "reference" else None


def _split(options: argparse.Namespace) -> tuple[Split, Sequence[MultiHopCase]]:
    """The split of --data, and its chains of facts."""
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
