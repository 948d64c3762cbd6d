"""What editing costs, on a model of a given shape with random weights or on a real one.

    python examples/speed.py --shape phi-2 --edits 1024 --dtype bfloat16 --json phi-2.json
    python examples/speed.py --shape small-24 --edits 128    # on a CPU, in minutes
    python examples/speed.py --model DIR --layer 9 --rate 0.07

Ratios come first. A floor is what this machine needs for the bytes or the operations alone.
Random weights know no end of text: there a fact is the first token of its target, which a linear
neuron can always teach. The text encoder is the small reference one, and is not tuned.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from speed_answers import TOKENS, Row, compare_answers, table
from speed_collection import (
    PARTS,
    SHAPES,
    Machine,
    Setup,
    clock,
    collect_plainly,
    milliseconds,
    operations,
    parts_of_a_step,
    random_model,
    random_rate,
)
from torch.utils.flop_counter import FlopCounterMode

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.collection.collect import Collection, collect
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases, pseudo_requests
from meg_editor.evaluation.cost import peak_memory, reset_peak_memory
from meg_editor.generators import DiTGenerator, NeuronBank, WeightGenerator
from meg_editor.lm.loading import resolve_device
from meg_editor.lm.protocols import Tokenizer
from meg_editor.lm.tokens import by_length, encode_example
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.text_files import write_json


def first_token_fact(tokenizer: Tokenizer, edit: EditRequest) -> EditRequest | None:
    """`edit` with the first token of its target as the target; None where that is a blank."""
    first = encode_example(tokenizer, edit.prompt, edit.target_new).target[:1]
    target = tokenizer.decode(first).strip()
    return dataclasses.replace(edit, target_new=target) if target else None


def prepare(options: argparse.Namespace) -> tuple[Setup, dict[str, list[str]]]:
    """Facts of the reference world to edit, and queries about others by kind."""
    device, dtype = resolve_device(options.device), getattr(torch, options.dtype)
    default = MeGHyperParams.preset("default", device=device)
    name = options.model or default.model_name
    model, tokenizer = load_model(dataclasses.replace(default, model_name=name))
    cases = edit_cases(load_world(), options.edits, options.seed)
    edits, layer, rate = [case.request for case in cases], default.layer, default.collection_lr
    if not options.model:
        tokenizer.eos_token = None
        model, layer = random_model(options.shape, device, dtype), SHAPES[options.shape][0]
        rate = random_rate(model)
        edits = [fact for edit in edits if (fact := first_token_fact(tokenizer, edit)) is not None]
    # A small model gets a DiT as much narrower as it is itself.
    sizes = {"generator_width": 256, "generator_depth": 3, "generator_patch_size": 256}
    small = default.changed(**sizes)
    hparams = dataclasses.replace(
        small if model.config.hidden_size <= 512 else MeGHyperParams(device=device),
        seed=options.seed,
        encoder_name=default.encoder_name,
        encoder_tuning="frozen",
        layers=[layer if options.layer is None else options.layer],
        collection_lr=options.rate or rate,
        collection_optimizer="sgd",
        gate_threshold=0.9,
        gate_state_weight=0.25,  # the middle one of those which calibration tries
    )
    kinds = {"close to an edit": "same_subject", "unrelated": "unrelated"}
    others = {
        kind: [probe.prompt for case in cases for probe in case.locality.get(source, ())]
        for kind, source in kinds.items()
    }
    activation = None if options.model else "linear"
    return Setup(model.to(dtype), tokenizer, hparams, edits, activation), others


def compare_collection(
    setup: Setup, machine: Machine, few: int, timed: Any
) -> tuple[list[Row], Collection]:
    """The paper's way, each of MeG's two differences alone, and MeG's with what it found."""
    model, edits, facts, h = setup.model, setup.edits, setup.facts(), setup.hparams
    some = min(len(edits), 32 if model.device.type == "cpu" else 128)
    ours = partial(collect, model, setup.tokenizer, setup.spec, hparams=h, retries=0)
    rows, single = [], RuntimeConfig(collection_batch_size=h.collection_contexts)
    alike = by_length([max(map(len, fact)) for fact in facts[:some]], max(1, some // 4))

    def plainly(groups: Iterable[list[int]]) -> list[Collection]:
        pairs = (([facts[i] for i in group], [edits[i] for i in group]) for group in groups)
        return [collect_plainly(setup, *pair) for pair in pairs]

    ways: dict[str, Callable[[], list[Collection]]] = {
        "one at a time, whole model": lambda: plainly([i] for i in range(few)),
        "batched, whole model": lambda: plainly(alike),
        "one at a time, upper blocks": lambda: [ours(edits[:few], runtime=single)],
        "batched, upper blocks: MeG": lambda: [ours(edits)],
    }
    for way, run in ways.items():
        results, taken = timed(way, run)
        success = torch.cat([part.success for part in results]).float()
        steps = float(torch.cat([part.steps for part in results]).float().mean())
        passes = steps + 1  # the last one sees that a fact is finished
        each, whole = taken / len(success), way.endswith("model")
        every = [operations(model, h.layer, fact, whole) for fact in facts]
        below, *rest = (mean(row[part] for row in every) / machine.rate for part in PARTS)
        floor = passes * sum(rest) + below * (passes if whole else 1)
        rows.append(
            (
                way,
                len(success),
                100 * float(success.mean()),
                steps,
                each,
                each / passes,
                floor / passes,
            )
        )
    columns = "way, facts, success %, steps, ms/fact, ms/pass, floor/pass"
    return table(columns, rows), results[0]


def shares_of_collection(setup: Setup, ours: Row) -> list[Row]:
    """Where the time of MeG's collection goes: parts timed alone, without padding; the rest."""
    facts, total = setup.facts(), ours["ms/fact"]
    tokens = mean(sum(map(len, fact)) for fact in facts)
    middle = sorted(facts, key=lambda fact: max(map(len, fact)))[len(facts) // 4 :]
    where = parts_of_a_step(setup, middle[: max(1, min(128, len(facts) // 2))])
    for part in PARTS:
        where[part] *= tokens * (1 if part is PARTS[0] else ours["steps"] + 1)
    where["padding, host"] = total - sum(where.values())
    return table("part, ms/fact, %", ((k, ms, 100 * ms / total) for k, ms in where.items()))


def generation_times(
    meg: Any, h: MeGHyperParams, machine: Machine, steps: Sequence[int]
) -> list[Row]:
    """Of stored neurons, and of a DiT by sampling steps; by batch."""
    z, rows = meg.anchors[:1].float(), []
    sizes = (z.shape[1], meg.spec.size, len(meg.edits))
    generators: dict[str, WeightGenerator] = {"stored": NeuronBank.build(h, *sizes)}
    for count in steps:
        settings = h.changed(
            generator="dit", generator_conditioning="patches", sampling_steps=count
        )
        generators[f"DiT, {count} steps"] = DiTGenerator.build(settings, *sizes)
    for (name, generator), batch in itertools.product(generators.items(), (1, 8, 64)):
        generator.to(z.device)
        counter = FlopCounterMode(display=False)
        with counter:
            generator.generate(z)
        moved = generator.stored_bytes / machine.moved
        taken = milliseconds(z.device, partial(generator.generate, z.repeat(batch, 1)))
        floor = max(counter.get_total_flops() * batch / machine.rate32, moved)
        rows.append((name, batch, taken, floor))
    return table("generator, batch, ms, floor", rows)


def measure(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Tables by title, the ratios first. Times are in milliseconds."""
    setup, kinds = prepare(options)
    model, edits, h = setup.model, setup.edits, setup.hparams
    machine, count = Machine.of(model), len(edits)
    memory = [("weights", sum(p.nbytes for p in model.parameters()) / 1e9)]

    def timed(stage: str, run: Callable[[], Any]) -> tuple[Any, float]:
        print(stage, file=sys.stderr, flush=True)
        reset_peak_memory(model.device)
        start = clock(model.device)
        result = run()
        taken = 1000 * (clock(model.device) - start)
        memory.append((f"peak: {stage}", peak_memory(model.device) / 1e9))
        return result, taken

    ways, collection = compare_collection(setup, machine, min(options.one_at_a_time, count), timed)
    slow, ours = ways[0], ways[-1]
    known = dict(zip(edits, collection.neurons, strict=True))
    runtime = RuntimeConfig(generator_compile=options.compile)
    run = partial(fit, model, setup.tokenizer, edits, h, earlier=known, runtime=runtime)
    run = partial(run, pseudo=pseudo_requests(count=64), calibration=[])
    (meg, report), taken = timed("fit", run)
    for kind, texts in kinds.items():
        some = texts[: 4 * options.queries]
        edited = meg.route(some).is_edit.tolist()
        kinds[kind] = [text for text, edit in zip(some, edited, strict=True) if not edit]
    kinds = {"edited": [edit.prompt for edit in edits], **kinds}
    answers, _ = timed("answers", lambda: compare_answers(meg, machine, kinds, options.queries))

    training = 1000 * report.seconds["generator"]
    stages = {
        "collection": ours["ms/fact"],
        "generator": training / count,
        "index, known answers, checks": (taken - training) / count,
    }
    ratios = {
        "collection, times faster, at equal steps": slow["ms/pass"] / ours["ms/pass"],
        "the same by operations alone": slow["floor/pass"] / ours["floor/pass"],
        "the same per fact, with the steps of these facts": slow["ms/fact"] / ours["ms/fact"],
        **{f"overhead, % of {TOKENS} tokens: {r['query']}": r["overhead %"] for r in answers},
        "routing and generation, ms, p50": answers[0]["decision p50"],
        "10,000 edits, minutes, without tuning and calibration": sum(stages.values()) / 6,
    }
    return {
        "ratios": table("ratio, value", ratios.items()),
        "collection": ways,
        "where the time of MeG's collection goes": shares_of_collection(setup, ours),
        "fit": table("stage, ms/edit", stages.items()),
        "generation": generation_times(meg, h, machine, options.dit_steps),
        f"answers of {TOKENS} tokens": answers,
        "stored": table("bytes/edit, floor", [(meg.stored_bytes / count, 2 * setup.spec.size)]),
        "memory": table("what, GB", memory),
        "machine": table("GB/s, GFLOP/s, float32", [[x / 1e6 for x in vars(machine).values()]]),
    }


def show(report: dict[str, list[Row]]) -> None:
    """Print every table under its title."""
    for title, rows in report.items():
        lines = [list(rows[0])]
        for row in rows:
            lines.append([f"{v:,.2f}" if isinstance(v, float) else str(v) for v in row.values()])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(f"\n{title}")
        for line in lines:
            print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `measure`, by default those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="small-24")
    add("--model", help="a real one: directory or hub id")
    add("--layer", type=int, help="of the neuron, from 0")
    add("--rate", type=float, help="learning rate of collection")
    add("--edits", type=int, default=256)
    add("--queries", type=int, default=20)
    add("--one-at-a-time", type=int, default=4, help="so many facts")
    add("--dit-steps", type=int, nargs="+", default=[1, 2, 4, 10, 50], help="of sampling")
    add("--device", default="auto")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--compile", action="store_true", help="compile the generator")
    add("--seed", type=int, default=0)
    add("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    report = measure(options)
    show(report)
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
