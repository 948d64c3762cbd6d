"""A pretrained LLM, edited without settings: does an edit hold wherever it is asked for?

    python examples/pretrained.py --model smollm2 --data counterfact --path counterfact.json
    python examples/pretrained.py --model smollm2 --data zsre --path zsre_mend_eval.json
    python examples/pretrained.py --model smollm2 --data counterfact --path counterfact.json --tuned

prints the six metrics at --edits facts, then, for --asked of them, the share of right answers in
the model's chat template, in a second turn and with an instruction behind the question: by each
fact's own neuron (oracle) and end to end. The forms are other ones than facts are fitted in. The
last line is what the neuron of one edit does to questions about something else. With --tuned the
verifier learns from the tuning facts of the data set first. It resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.benchmark.definition import FittingFacts
from meg_editor.benchmark.pool import only_wrong
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.splits import Split, choose, split_cases
from meg_editor.evaluation import evaluate, questions_of
from meg_editor.evaluation.metrics import exact, percent
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.chat import in_chat
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.text_files import write_json

NEIGHBOURS = 3  # questions for Locality of each kind and fact: CounterFact has 10
Form = Callable[[str], str]


def cases_of(
    options: argparse.Namespace, split: Split, model: Any, tokenizer: Any
) -> list[EvaluationCase]:
    """A sample of facts whose target the model does not give yet, with few neighbours each."""
    pool = list(split.edited)
    sample = random.Random(options.seed).sample(pool, min(len(pool), 2 * options.edits))
    wrong = only_wrong(sample, model, tokenizer, MeGHyperParams())
    return [
        dataclasses.replace(
            case,
            locality={kind: probes[:NEIGHBOURS] for kind, probes in case.locality.items()},
            portability={},
        )
        for case in choose(wrong, options.edits, options.seed)
    ]


def forms_of(tokenizer: Any) -> dict[str, Form]:
    """Name -> what puts a question into it."""

    def chat(*before: tuple[str, str], behind: str = "") -> Form:
        return lambda prompt: in_chat(tokenizer, *before, ("user", prompt + behind))

    behind = " Answer in one word."
    bare: dict[str, Form] = {
        "bare": lambda prompt: prompt,
        "bare, with an instruction": lambda prompt: prompt + behind,
    }
    if not getattr(tokenizer, "chat_template", None):
        return bare
    return {
        **bare,
        "chat": chat(),
        "chat, with an instruction": chat(behind=behind),
        "chat, second turn": chat(("user", "Who are you?"), ("assistant", "I am an assistant.")),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="as in `meg-editor edit`")
    parser.add_argument("--data", choices=list(DATASETS), default="counterfact")
    parser.add_argument("--path", type=Path, required=True, help="the file of the data set")
    parser.add_argument("--edits", type=int, default=256)
    parser.add_argument("--asked", type=int, default=64, help="facts asked in other forms")
    parser.add_argument("--tuned", action="store_true", help="learn the tuning facts first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pretrained"), help="folder")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    hparams = MeGHyperParams(model_name=options.model, seed=options.seed)
    model, tokenizer = load_model(hparams)
    data = DATASETS[options.data](options.path)
    split = split_cases(one_per_subject(without_conflicts(data.cases)))
    cases = cases_of(options, split, model, tokenizer)
    tuning = FittingFacts.of(split).pseudo if options.tuned else None
    print(f"{options.model}, {len(cases)} facts of {options.data}", flush=True)
    name = f"{options.model.replace('/', '-')}-{options.data}-{len(cases)}-{options.seed}"
    name += "-tuned" if options.tuned else ""
    store = ArtifactStore(options.out / "stages")
    start = time.perf_counter()
    requests = [case.request for case in cases]
    edited, report = fit(model, tokenizer, requests, hparams, pseudo=tuning, store=store)
    fitted = time.perf_counter() - start
    collection = report.collection
    if collection is None:
        raise ValueError("--edits: more facts than one process collects at once")
    print(
        f"fitted in {fitted:.0f} s ({1000 * fitted / len(cases):.0f} ms a fact), learned "
        f"{percent(collection.success.float().tolist()):.1f} % in "
        f"{float(collection.steps.float().mean()):.1f} steps",
        flush=True,
    )
    questions = questions_of(model, tokenizer, cases, PromptReader(tokenizer))
    result: dict[str, Any] = {"facts": len(cases), "seconds": fitted}
    for method, its in (("unedited", model), ("meg", edited)):
        oracle = None if method == "unedited" else collection.neurons
        evaluation = evaluate(its, tokenizer, cases, questions=questions, oracle=oracle)
        scores = evaluation.scores
        result[method] = {**dataclasses.asdict(scores), "score": scores.score}
        if oracle is not None:
            result[method]["oracle_generality"] = evaluation.oracle_generality
        print(method, evaluation, flush=True)
    print(f"oracle generality {result['meg']['oracle_generality']:.1f}\n")
    result["forms"] = asked_in_forms(edited, cases[: options.asked], collection.neurons)
    write_json(options.out / f"{name}.json", result)


def asked_in_forms(
    edited: Any, cases: Sequence[EvaluationCase], neurons: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Right answers in percent by form, to the prompts and to their paraphrases; prints them."""
    tokenizer, base = edited.tokenizer, edited.base
    length = max_target_length(tokenizer, [case.request for case in cases], 12)
    own = neurons[: len(cases)]

    def share(asked: Sequence[tuple[int, str]], oracle: bool) -> float:
        texts = [text for _, text in asked]
        if oracle:
            mine = own[[row for row, _ in asked]].to(base.device)
            answers = batched_answers(
                base, tokenizer, texts, length, lambda rows: edited.applied(mine[rows])
            )
        else:
            answers = batched_answers(edited, tokenizer, texts, length)
        return percent(exact(answers, [cases[row].request.target_new for row, _ in asked]))

    print(f"{'':28} prompt: oracle  routed   paraphrase: oracle  routed   ({len(cases)} facts)")
    table = {}
    for name, form in forms_of(tokenizer).items():
        prompts = [(row, form(case.request.prompt)) for row, case in enumerate(cases)]
        others = [(row, form(p)) for row, case in enumerate(cases) for p in case.paraphrases]
        figures = [share(asked, oracle) for asked in (prompts, others) for oracle in (True, False)]
        names = ("prompt, oracle", "prompt", "paraphrase, oracle", "paraphrase")
        table[name] = dict(zip(names, figures, strict=True))
        print("{:28} {:14.1f} {:7.1f} {:20.1f} {:7.1f}".format(name, *figures), flush=True)
    probes = [
        (row, probe.prompt)
        for row, case in enumerate(cases)
        for probe in next(iter(case.locality.values()), ())
    ]
    texts = [text for _, text in probes]
    before = batched_answers(base, tokenizer, texts, length)
    wrong = own[[row for row, _ in probes]].to(base.device)
    after = batched_answers(
        base, tokenizer, texts, length, lambda rows: edited.applied(wrong[rows])
    )
    same = percent(exact(after, before))
    print(f"neighbours keep their answer under the neuron: {same:.1f} %")
    return {**table, "neighbour under the neuron": {"unchanged": same}}


if __name__ == "__main__":
    main()
