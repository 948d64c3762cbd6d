"""What a change of a live model costs, and whether it changes anything else.

    python examples/live_edits.py times --edits 1024
    python examples/live_edits.py times --edits 64 --model smollm2
    python examples/live_edits.py one-by-one --edits 1000
    python examples/live_edits.py many --edits 100000
    python examples/live_edits.py consolidate --edits 1024 --width 64

`times`: seconds of a change with its write to disk, and how many answers of the other edits and of
their neighbours are the same, token for token. `one-by-one`: N edits added one at a time against
one fit of N: scores, and seconds of the first, the hundredth and the last. `many`: edits added in
batches of 1,000, with synthetic neurons (the facts of another one): time and memory of a batch, of
a removal, a query, a save and a load as they grow. `consolidate`: seconds, bytes, answers lost.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.phrasebook.names import draw_name
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.edits.edit import Edit
from meg_editor.edits.edition import Rows
from meg_editor.evaluation import evaluate
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest

NEIGHBOURS = 500
REPEATS = 5
BATCH = 1000
ASKED = 256  # of the edits


def cases_of(options: argparse.Namespace, count: int) -> list[Any]:
    """Facts to edit: of the reference world, or of CounterFact's file."""
    if options.path is None:
        return list(edit_cases(load_world(), count, seed=0))
    from meg_editor.data.loaders.counterfact import load_counterfact

    cases = one_per_subject(without_conflicts(load_counterfact(options.path).cases))
    return random.Random(0).sample(list(cases), count)


def loaded(options: argparse.Namespace) -> tuple[Any, Any, MeGHyperParams]:
    """Base model, tokenizer and settings."""
    name = options.model
    hparams = MeGHyperParams(model_name=name) if name else MeGHyperParams.preset("default")
    return *load_model(hparams), hparams


def seconds(action: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def times(options: argparse.Namespace) -> None:
    """Print the cost of each change, and what became of all other answers."""
    cases = cases_of(options, options.edits + REPEATS)
    requests = [case.request for case in cases]
    model, tokenizer, hparams = loaded(options)
    edited, _ = fit(model, tokenizer, requests[: options.edits], hparams)
    folder = Path(tempfile.mkdtemp()) / "edits"
    edited.save_pretrained(folder)
    others = [r.prompt for r in requests[: options.edits]]
    probes = [p for case in cases for each in case.locality.values() for p in each]
    near = list(dict.fromkeys(probe.prompt for probe in probes))[:NEIGHBOURS]
    before = edited.answer(others), edited.answer(near)
    spent: dict[str, list[float]] = {}

    def change(name: str, action: Callable[[], Any]) -> None:
        def saved() -> None:
            action()
            edited.save_pretrained(folder)

        spent.setdefault(name, []).append(seconds(saved))

    for row, new in enumerate(requests[options.edits :]):
        change("add", lambda new=new: edited.add([new], on_conflict="keep"))
        assert_answer(edited, new)
        other = replace(requests[row], target_new=new.target_new)
        change("replace", lambda other=other: edited.replace([other]))
        assert_answer(edited, other)
        change("remove", lambda new=new: edited.remove(new.prompt))
        for _ in range(3):
            change("undo", edited.undo)
    for name, each in spent.items():
        print(f"{name:8} {sum(each) / len(each):.3f} s (longest {max(each):.3f}), write included")
    after = edited.answer(others), edited.answer(near)
    for name, old, new in zip(("edits", "neighbours"), before, after, strict=True):
        same = sum(one == two for one, two in zip(old, new, strict=True))
        print(f"{same} of {len(old)} {name} answer as before")
    print(f"load {seconds(lambda: MeGModel.from_pretrained(folder, base=edited.base)):.2f} s")


def assert_answer(edited: MeGModel, request: EditRequest) -> None:
    """Say so if an edit does not hold."""
    if edited.answer(request.prompt) != [request.target_new]:
        print(f"not answered: {request.prompt!r}: {edited.answer(request.prompt)}")


def one_by_one(options: argparse.Namespace) -> None:
    """Print scores and seconds of N edits one at a time and at once."""
    cases = cases_of(options, options.edits)
    model, tokenizer, hparams = loaded(options)
    requests = [case.request for case in cases]
    start = time.perf_counter()
    whole, _ = fit(model, tokenizer, requests, hparams)
    at_once = (time.perf_counter() - start) / len(requests)
    growing, _ = fit(model, tokenizer, requests[:1], hparams)
    spent = [seconds(lambda r=r: growing.add([r], on_conflict="keep")) for r in requests[1:]]
    asked = [replace(case, portability={}) for case in cases[:ASKED]]
    for name, edited in (("at once", whole), ("one by one", growing)):
        print(f"{name}, {len(asked)} asked: {evaluate(edited, tokenizer, asked)}")
    print(f"{at_once:.3f} s an edit at once, {sum(spent) / len(spent):.3f} one by one")
    for place in (1, 100, len(spent) - 10):
        part = spent[place : place + 10]
        print(f"  edits {place + 1} to {place + len(part)}: {sum(part) / len(part):.3f} s each")


def many(options: argparse.Namespace) -> None:
    """Print how the cost of a call grows with the number of edits."""
    cases = edit_cases(load_world(), 64, seed=0)
    model, tokenizer, hparams = loaded(options)
    edited, _ = fit(model, tokenizer, [case.request for case in cases], hparams)
    neurons = edited.edition.neurons(range(64)).half().cpu()
    folder, rng = Path(tempfile.mkdtemp()) / "edits", random.Random(0)
    edited.save_pretrained(folder)
    print("   edits    add  remove   query    save  (s)      MB")
    while len(edited.edits) < options.edits:
        names = [draw_name(rng, ["Ada Lovelace", "Bode Okonwale"]) for _ in range(BATCH)]
        made = [
            Edit(f"The hometown of {name} {len(edited.edits) + row} is", "Lima", name, by="add")
            for row, name in enumerate(names)
        ]
        anchors = edited.encoder.encode([edit.prompt for edit in made]).cpu()
        rows = Rows(tuple(made), anchors, neurons[[rng.randrange(64) for _ in made]])
        adding = seconds(lambda rows=rows: edited._change("add", [], rows))
        saving = seconds(lambda: edited.save_pretrained(folder))
        asked = rng.choice(made)
        asking = seconds(lambda asked=asked: edited.route(asked.prompt))
        removing = seconds(lambda asked=asked: edited.remove(asked.id))
        if len(edited.edits) // BATCH in (1, 2, 5, 10, 20, 50, 99, 100):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            spent = "  ".join(f"{each:6.3f}" for each in (adding, removing, asking, saving))
            print(f"{len(edited.edits):8} {spent}  {memory:10.0f}", flush=True)
    edited.save_pretrained(folder)
    print(f"load {seconds(lambda: MeGModel.from_pretrained(folder, base=edited.base)):.1f} s")


def consolidate(options: argparse.Namespace) -> None:
    """Print what a consolidation gains and loses."""
    cases = cases_of(options, options.edits)
    model, tokenizer, hparams = loaded(options)
    requests = [case.request for case in cases]
    hparams = hparams.changed(generator="bank", generator_width=options.width)
    edited, _ = fit(model, tokenizer, requests, hparams)
    prompts = [request.prompt for request in requests]
    before = edited.answer(prompts)
    print(edited.consolidate())
    after = edited.answer(prompts)
    targets = [request.target_new for request in requests]
    lost = sum(b == t != a for b, a, t in zip(before, after, targets, strict=True))
    print(f"{lost} of {len(prompts)} right answers lost")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = {"times": times, "one-by-one": one_by_one, "many": many, "consolidate": consolidate}
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--edits", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256, help="of the generator (default 256)")
    parser.add_argument("--model", help="a pretrained LLM, with --path")
    parser.add_argument("--path", type=Path, help="CounterFact's file")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    kinds[options.what](options)


if __name__ == "__main__":
    main()
