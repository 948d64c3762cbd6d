"""`meg-editor demo`: edit the reference model, show what changed and what did not, measure it.

With --model it is `demo_pretrained`'s.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meg_editor.cli.demo_pretrained import cut, run_pretrained
from meg_editor.cli.lost_edits import check_nothing_is_lost
from meg_editor.cli.scores_plot import draw_scores
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import evaluate, questions_of
from meg_editor.evaluation.forms import FormScores, evaluate_forms, form_prompts, sampled_facts
from meg_editor.evaluation.report import EvaluationReport, MethodReport
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.loading import load_model, resolve_device
from meg_editor.lm.protocols import CausalLM
from meg_editor.model.fit_report import FitReport
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader, in_template
from meg_editor.runtime.artifacts import ArtifactStore

PRESETS = ("default", "paper")
_PAPER_NOTE = (
    "paper: the method as published, with its diffusion transformer trained for a minute instead "
    "of hours. A warning\nabout the error of its neurons is expected here and harmless: the table "
    "below counts answers, and a neuron that is\nfar from the collected one in many small values "
    "can still give the right answer."
)


@dataclass
class Demo:
    """What the demo leaves behind."""

    report: EvaluationReport
    models: dict[str, MeGModel]
    cases: list[EvaluationCase]


def run(options: argparse.Namespace) -> None:
    """The command."""
    if options.encoder and not options.model:
        raise ValueError("--encoder is for --model: the reference model has an encoder of its own")
    if options.model:
        if options.forms:
            raise ValueError("--forms asks the reference model: leave it out beside --model")
        run_pretrained(options)
        return
    presets = (options.preset,) if options.preset else PRESETS
    edits = 256 if options.edits is None else options.edits
    run_demo(edits, options.seed, options.out, presets, options.device, forms=options.forms)


def run_demo(
    edits: int = 256,
    seed: int = 0,
    out: Path | None = None,
    presets: Sequence[str] = PRESETS,
    device: str = "auto",
    say: Callable[[str], None] = print,
    forms: Path | None = None,
) -> Demo:
    """Edit `edits` facts of the reference model with each preset and evaluate everything.

    Args:
        out: gets report.json, scores.png where matplotlib is installed, the edited model of the
            first preset (`model/`) and the finished stages (`stages/`), from which an interrupted
            run resumes.
        say: gets each message.
        forms: file of prompt forms in which up to 64 of the facts are asked for too.

    Raises:
        ValueError: more edits than the reference world has facts for, or a bad file of forms.
        OSError: `out` cannot be written, or there is no file of forms.
    """
    prompt_forms = load_forms(forms) if forms else []
    if out:
        out.mkdir(parents=True, exist_ok=True)
    world = load_world()
    cases = edit_cases(world, edits, seed)
    requests = [case.request for case in cases]
    if out:
        check_nothing_is_lost(out / "model", requests, str(out / "model"))
    hparams_by_preset = {
        name: MeGHyperParams.preset(name, seed=seed, device=resolve_device(device))
        for name in presets
    }
    model, tokenizer = load_model(next(iter(hparams_by_preset.values())))
    say(
        f"{edits} facts of the reference model get a new answer (seed {seed}, {model.device}); "
        f"this takes about {_minutes(edits, len(presets))} minutes on two CPU cores.\n"
    )
    store = ArtifactStore(out / "stages" if out else None)
    report = EvaluationReport(edits, seed, str(model.device))
    questions = questions_of(model, tokenizer, cases, PromptReader(tokenizer))
    asked = sampled_facts(range(edits), seed)
    prompts = form_prompts(model, tokenizer, cases, prompt_forms, asked) if prompt_forms else []

    def in_forms(method: CausalLM) -> FormScores | None:
        return evaluate_forms(method, tokenizer, prompts) if prompts else None

    report.methods["unedited"] = MethodReport(
        evaluate(model, tokenizer, cases, questions=questions), forms=in_forms(model)
    )
    models: dict[str, MeGModel] = {}
    for name, hparams in hparams_by_preset.items():
        if name == "paper":
            say(_PAPER_NOTE)
        edited, fitted = fit(
            model,
            tokenizer,
            requests,
            hparams,
            store=store,
        )
        models[name] = edited
        say(_fit_line(name, fitted))
        oracle = fitted.collection.neurons if fitted.collection else None
        report.methods[f"meg-{name}"] = MethodReport(
            evaluate(edited, tokenizer, cases, questions=questions, oracle=oracle),
            fitted,
            edited.stored_bytes,
            in_forms(edited),
        )
        if name == presets[0]:
            say("\n" + before_and_after(edited, cases, seed) + "\n")
            if out:
                edited.save_pretrained(out / "model")
    say("\n" + report.table())
    if out:
        _write(report, out, say)
    return Demo(report, models, cases)


def _minutes(edits: int, presets: int) -> int:
    """Of a run on two cores, measured at 256 and 1,024 edits."""
    return round(presets * (1.5 + edits / 500))


def _fit_line(name: str, fitted: FitReport) -> str:
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in fitted.seconds.items())
    resumed = f" (resumed: {', '.join(fitted.resumed)})" if fitted.resumed else ""
    return f"{name}: fitted in {sum(fitted.seconds.values()):.0f} s: {stages}{resumed}"


def _write(report: EvaluationReport, out: Path, say: Callable[[str], None]) -> None:
    report.write(out / "report.json")
    drawn = draw_scores(report.to_dict(), out / "scores.png")
    files = f"{out / 'report.json'} and {out / 'scores.png'}" if drawn else f"{out / 'report.json'}"
    say(f"\nWrote {files}. Ask the edited model: meg-editor ask {out / 'model'}")


def before_and_after(
    edited: MeGModel, cases: Sequence[EvaluationCase], seed: int, count: int = 5
) -> str:
    """A table of some edits, one paraphrase each, and a neighbour that must not change."""
    template = edited.hparams.prompt_template
    lines = [f"{'':12} {'question':58} {'before':22} after"]
    for case in random.Random(seed).sample(list(cases), min(count, len(cases))):
        rows = [("edited", case.request.prompt), ("paraphrase", case.paraphrases[0])]
        rows += [("neighbour", probes[0].prompt) for probes in list(case.locality.values())[:1]]
        prompts = [in_template(template, prompt) for _, prompt in rows]
        before = greedy_answers(edited.base, edited.tokenizer, prompts, 12)
        after = greedy_answers(edited, edited.tokenizer, prompts, 12)
        for (kind, prompt), old, new in zip(rows, before, after, strict=True):
            lines.append(f"{kind:12} {cut(prompt, 58):58} {cut(old, 22):22} {new}")
        lines.append("")
    return "\n".join(lines).rstrip()
