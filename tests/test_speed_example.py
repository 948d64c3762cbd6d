"""The program which measures speed: what it compares, what it counts, and that it runs."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS
from torch.utils.flop_counter import FlopCounterMode

from meg_editor.collection.collect import collect, shared_start
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import Batch, Example, target_logits
from meg_editor.requests.request import EditRequest

SCRIPT = Path(__file__).parents[1] / "examples" / "speed.py"
TARGETS = ["of", "capital", "river", "language"]  # one token each
EDITS = [EditRequest(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=False)]


@pytest.fixture(scope="module")
def speed() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location("speed_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(speed: Any, tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None  # as the program has it for random weights
    hparams = MeGHyperParams(
        layers=[1],
        collection_optimizer="sgd",
        collection_lr=0.3,
        collection_contexts=2,
        collection_loss_threshold=0.5,
    )
    return speed.Setup(tiny_llama, tokenizer, hparams, EDITS)


@pytest.mark.parametrize(
    ("shape", "published"),
    [  # what transformers counts in the checkpoints
        ("phi-2", 2_779_683_840),
        ("gpt-j-6b", 6_050_882_784),
        ("llama-3-8b", 8_030_261_248),
        ("gpt2-medium", 354_823_168),
    ],
)
def test_shapes_have_the_size_of_the_models_they_stand_for(
    speed: Any, shape: str, published: int
) -> None:
    model = speed.random_model(shape, "meta", torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_plain_way_finds_what_collection_finds(speed: Any, setup: Any) -> None:
    hparams, runtime = setup.hparams, RuntimeConfig(collection_batch_size=1)
    model = (setup.model, setup.tokenizer, setup.spec)
    ours = collect(*model, EDITS, hparams, runtime, retries=0)
    assert ours.success.all() and len(ours.steps.unique()) > 2  # there is something to compare
    facts = setup.facts()
    together = [speed.collect_plainly(setup, facts, EDITS)]
    alone = [speed.collect_plainly(setup, [f], [e]) for f, e in zip(facts, EDITS, strict=True)]
    for parts in (together, alone):
        assert torch.equal(torch.cat([part.success for part in parts]), ours.success)
        assert torch.equal(torch.cat([part.steps for part in parts]), ours.steps)
        assert torch.allclose(torch.cat([p.neurons for p in parts]), ours.neurons, atol=1e-2)
    start = shared_start(setup.spec, hparams.seed)
    assert float((ours.neurons - start).abs().amax()) > 0.1


def _products(run: Callable[[], Any]) -> int:
    """Operations of the matrix products with weights, counted by PyTorch as they happen."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))


def test_operations_are_those_which_pytorch_counts(speed: Any, setup: Any) -> None:
    fact: list[Example] = setup.facts()[0]
    fact = [fact[0], fact[0]]  # of one length: padding is not counted
    model, spec = setup.model, setup.spec
    plain = speed.operations(model, spec.layer, fact, whole=True)
    ours = speed.operations(model, spec.layer, fact, whole=False)

    def steps(count: int) -> int:
        hparams = dataclasses.replace(
            setup.hparams, collection_steps=count, collection_lr=0.0, collection_loss_threshold=0.0
        )
        slow = dataclasses.replace(setup, hparams=hparams)
        return _products(lambda: speed.collect_plainly(slow, [fact], EDITS[:1]))

    assert steps(3) - steps(2) == sum(plain.values())

    batch, upper = Batch.of(fact, "cpu"), LayersFrom(model, spec.layer)
    upper.residual_stream(batch.ids)  # the first time it is tried whether the model allows it
    assert _products(lambda: upper.residual_stream(batch.ids)) == ours.pop(speed.PARTS[0])
    stream = upper.residual_stream(batch.ids)
    own = shared_start(spec, 0).repeat(2, 1).requires_grad_(True)

    def step() -> None:
        with NeuronHook(model, spec) as hook, hook.attached(own), upper.injected(stream):
            logits, targets, _ = target_logits(model, batch)
        torch.nn.functional.cross_entropy(logits, targets).backward()

    assert _products(step) == sum(ours.values())


def test_a_run_prints_ratios_first_and_writes_them(
    speed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(_: Any, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)

    tiny = (1, "llama", (4096, 128, 3, 2), {"intermediate_size": 96})
    monkeypatch.setitem(speed.SHAPES, "small-24", tiny)
    monkeypatch.setattr(speed, "milliseconds", once)
    path = tmp_path / "speed.json"
    command = [
        "speed.py",
        "--edits",
        "8",
        "--queries",
        "2",
        "--one-at-a-time",
        "2",
        "--rate",
        "0.05",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu", "--json", str(path)])
    speed.main()
    report = json.loads(path.read_text("utf-8"))
    printed = capsys.readouterr().out
    assert printed.split()[0] == "ratios"
    assert all(f"\n{title}\n" in printed for title in report)
    slow, *_, ours = report["collection"]
    assert (slow["facts"], ours["facts"]) == (2, 8)
    assert slow["success %"] == ours["success %"] == 100.0
    assert slow["floor/pass"] > ours["floor/pass"] > 0
    ratios = {row["ratio"]: row["value"] for row in report["ratios"]}
    faster = slow["ms/fact"] / (slow["steps"] + 1) / (ours["ms/fact"] / (ours["steps"] + 1))
    assert ratios["collection, times faster, at equal steps"] == pytest.approx(faster)
    answers = {row["query"]: row for row in report["answers of 20 tokens"]}
    assert {"edited", "edited again", "unrelated", "8 edited"} <= set(answers)
    for row in answers.values():
        count = 8 if row["query"].startswith("8 ") else 1
        assert row["MeG tok/s"] == pytest.approx(1000 * 20 * count / row["MeG ms"])
    ways = [(row["generator"], row["batch"]) for row in report["generation"]]
    assert ways[0] == ("stored", 1) and ways[-1] == ("DiT, 50 steps", 64)
    assert sum(row["%"] for row in report["where the time of MeG's collection goes"]) == (
        pytest.approx(100)
    )
