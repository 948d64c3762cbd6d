"""Live edits beside a trained generator, and its training on what has gathered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS
from live_facts import assert_same, facts, load
from synthetic_neurons import neuron_of
from torch import Tensor

from meg_editor.collection.collect import answers_with
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits.edit import edits_of
from meg_editor.edits.edition import Rows
from meg_editor.generators import NeuronBank
from meg_editor.generators.dit import DiTGenerator
from meg_editor.generators.grown import GrownGenerator
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.listing import saved_edits
from meg_editor.requests.request import EditRequest

SMALL = {
    "generator_width": 4,
    "generator_depth": 1,
    "generator_patch_size": 64,
    "generator_steps": 150,
    "sampling_steps": 4,
}
MANY = 160
PLACES = [prompt.split()[-2] for prompt in PROMPTS[:7]]


pytestmark = pytest.mark.usefixtures("collector")


def states(model: MeGModel) -> list[str]:
    return [edit.state for edit in model.edits]


def neurons(model: MeGModel, texts: list[str]) -> Tensor:
    found = model.neurons(model.route(texts))
    assert found is not None
    return found


# ------------------------------------------------------------- beside a trained generator


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_new_neurons_are_stored_beside_the_trained_ones(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, kind: str, anchored: bool
) -> None:
    model = make_meg_model(kind, generator_anchored=anchored)
    model.gate.threshold.fill_(0.999)
    assert states(model) == ["generated"] * 6
    old, new = PROMPTS[:6], [PROMPTS[8], PROMPTS[9]]
    before, answers = neurons(model, old), model.answer(old, 4)

    model.add(facts(8, 9))
    assert states(model) == ["generated"] * 6 + ["stored"] * 2
    expected = torch.stack([neuron_of(fact, model.spec.size) for fact in facts(8, 9)]).half()
    assert torch.equal(neurons(model, new), expected.float())
    assert torch.equal(neurons(model, old), before) and model.answer(old, 4) == answers

    model.remove([PROMPTS[8], PROMPTS[2]])
    mixed = [PROMPTS[9], *old[:2], *old[3:]]
    assert torch.equal(neurons(model, mixed)[0], expected[1].float())
    assert model.answer(mixed[1:], 4) == answers[:2] + answers[3:]
    model.save_pretrained(tmp_path / "whole")
    loaded = MeGModel.from_pretrained(tmp_path / "whole", base=model.base)
    assert states(loaded) == states(model) == ["generated"] * 5 + ["stored"]
    assert torch.equal(neurons(loaded, mixed), neurons(model, mixed))
    assert loaded.answer(mixed, 4) == model.answer(mixed, 4)
    if kind == "dit":
        runtime = RuntimeConfig(generator_compile=True)
        fast = MeGModel.from_pretrained(tmp_path / "whole", base=model.base, runtime=runtime)
        assert fast.generator.trained.compile_network
        assert not loaded.generator.trained.compile_network
        fast.generator.trained._compiled = fast.generator.trained.network.forward
        assert copy.deepcopy(fast).generator.trained._compiled is None  # it compiles its own

    for undone in (model, loaded):  # the trained generator still has the one, a shard the other
        undone.undo()
        assert torch.equal(neurons(undone, new), expected.float())
        assert torch.equal(neurons(undone, old), before)
        assert states(undone).count("stored") == 2
    loaded.compact()
    loaded.save_pretrained(tmp_path / "whole")
    again = MeGModel.from_pretrained(tmp_path / "whole", base=model.base)
    assert again.answer(old + new, 4) == model.answer(old + new, 4)
    assert [edit.state for edit in saved_edits(tmp_path / "whole")] == states(model)


def test_all_neurons_of_a_trained_generator_can_be_stored_ones(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path
) -> None:
    model = make_meg_model("dit")
    model.remove([edit.id for edit in model.edits])
    model.add(facts(8))
    model.compact()
    model.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=model.base)
    assert states(loaded) == ["stored"]
    assert torch.equal(neurons(loaded, [PROMPTS[8]]), neurons(model, [PROMPTS[8]]))


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_what_is_left_of_a_trained_generator_is_saved(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, kind: str
) -> None:
    """Its stored neurons, none, had the shape (0, 0), which saving refused from then on."""
    model = make_meg_model(kind)
    model.gate.threshold.fill_(0.999)
    model.remove(PROMPTS[0])
    model.compact()
    for asked in (PROMPTS[1:6], [*PROMPTS[1:6], PROMPTS[8]]):
        model.save_pretrained(tmp_path / "edits")
        loaded = MeGModel.from_pretrained(tmp_path / "edits", base=model.base)
        assert [edit.prompt for edit in loaded.edits] == asked
        assert torch.equal(neurons(loaded, asked), neurons(model, asked))
        model.add(facts(8))


# -------------------------------------------------------------------------- consolidation


def gathered(make: Callable[..., MeGModel], alike: int) -> MeGModel:
    """MANY edits whose targets are what the stored neurons say; the first `alike` share one."""
    model = make("bank", collection_contexts=2, **SMALL)
    model.gate.threshold.fill_(0.999)
    model.remove([edit.id for edit in model.edits])
    places = product(PLACES, PLACES, ("capital", "river", "language", "book"))
    prompts = [f"The {what} of {one} and {other} is" for one, other, what in places][:MANY]
    rows = torch.randn(MANY, model.spec.size, generator=torch.Generator().manual_seed(3))
    rows[:alike] = rows[0] + 1e-3 * rows[:alike]
    answers = answers_with(model.base, model.tokenizer, model.spec, rows.half().float(), prompts, 2)
    chosen = [row for row in range(MANY) if answers[row].strip()]
    edits = edits_of([EditRequest(prompts[row], answers[row].strip()) for row in chosen], "add")
    states = model.index.standardised(model.states.read([edit.prompt for edit in edits]))
    anchors = model.encoder.encode([edit.prompt for edit in edits])
    model._change("add", [], Rows(edits, anchors, rows[chosen].half(), states).cpu())
    return model


def right(model: MeGModel) -> set[str]:
    """Ids of the edits which give their targets."""
    answers = model.answer([edit.prompt for edit in model.edits], 3)
    return {
        edit.id
        for edit, answer in zip(model.edits, answers, strict=True)
        if answer.startswith(edit.target_new)
    }


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_consolidation_saves_bytes_and_loses_no_answer(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, mode: Any
) -> None:
    model = gathered(make_meg_model, alike=140)
    count, before = len(model.edits), right(model)
    assert len(before) > 100
    stored = model.generator.stored_bytes
    model.save_pretrained(tmp_path / "edits")

    with mode():
        result = model.consolidate()
    assert (result.edits, result.bytes_before) == (count, stored)
    assert result.bytes_after == model.generator.stored_bytes < stored
    assert isinstance(model.generator, GrownGenerator)
    # Both kinds are there: what the generator cannot say stays stored.
    assert 0 < result.generated == states(model).count("generated") < count
    assert before <= right(model)
    assert model.history() == () and model.hparams.generator == "dit"
    assert f"{result.generated} of {count} edits generated" in repr(result)

    model.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=model.base)
    prompts = [edit.prompt for edit in model.edits]
    assert loaded.answer(prompts, 2) == model.answer(prompts, 2)
    assert states(loaded) == states(model) == [e.state for e in saved_edits(tmp_path / "edits")]

    loaded.add(facts(8))
    loaded.save_pretrained(tmp_path / "edits")
    again = MeGModel.from_pretrained(tmp_path / "edits", base=model.base)
    assert again.answer([*prompts, PROMPTS[8]], 2) == loaded.answer([*prompts, PROMPTS[8]], 2)
    assert before <= right(again)

    further = again.consolidate()  # of a generator that has grown
    assert further.bytes_after <= further.bytes_before and before <= right(again)


def test_consolidation_which_saves_nothing_changes_nothing(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model("bank", **SMALL)
    model.add(facts(8), on_conflict="keep")
    edition = model.edition
    for _ in range(2):
        result = model.consolidate()
        assert model.edition is edition and len(model.history()) == 1
        assert (result.generated, result.bytes_after) == (0, result.bytes_before)
        # Once more, after training: the generator is too large in the end.
        monkeypatch.setattr("meg_editor.edits.consolidation.dit_bytes", lambda *_: 0)
    assert isinstance(model.generator, NeuronBank) and model.undo()
    model.remove([edit.id for edit in model.edits])
    assert model.consolidate().edits == 0


def test_a_generator_that_failed_to_learn_takes_no_answer(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gathered(make_meg_model, alike=140)
    before, twin = right(model), copy.deepcopy(model)
    monkeypatch.setattr(DiTGenerator, "fit", lambda *_, **__: [])  # its neurons are zeros
    result = twin.consolidate()
    assert before <= right(twin)
    assert result.generated + states(twin).count("stored") == len(twin.edits)


def test_consolidation_which_fails_changes_nothing(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gathered(make_meg_model, alike=10)

    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(DiTGenerator, "fit", fail)
    edition, hparams = model.edition, model.hparams
    with pytest.raises(FloatingPointError):
        model.consolidate()
    assert model.edition is edition and model.hparams == hparams and len(model.history()) == 2


def test_a_load_generates_no_more_than_was_removed(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model("dit")
    model.gate.threshold.fill_(0.999)
    model.save_pretrained(tmp_path / "edits")
    model.add(facts(8))
    model.remove([PROMPTS[2], PROMPTS[8]])
    model.save_pretrained(tmp_path / "edits")
    generated: list[int] = []
    generate = DiTGenerator.generate

    def counted(self: DiTGenerator, conditions: Tensor, steps: int | None = None) -> Tensor:
        generated.append(len(conditions))
        return generate(self, conditions, steps)

    monkeypatch.setattr(DiTGenerator, "generate", counted)
    loaded = load(model, tmp_path / "edits")
    assert sum(generated) == 1
    assert_same(loaded, model)
    loaded.undo(), model.undo()
    assert_same(loaded, model)


def test_neurons_are_generated_some_at_a_time(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model("mlp")
    whole = model.edition.neurons(range(6))
    monkeypatch.setattr("meg_editor.edits.edition._CHUNK", 4)
    sizes: list[int] = []
    generate = type(model.generator).generate
    monkeypatch.setattr(
        type(model.generator),
        "generate",
        lambda self, z, steps=None: sizes.append(len(z)) or generate(self, z, steps),
    )
    torch.testing.assert_close(model.edition.neurons(range(6)), whole)
    assert sizes == [4, 2] and model.edition.neurons([]).shape == (0, model.spec.size)
