"""Edits on the move: exported, merged from folders, re-attached to other bases, in EasyEdit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS
from live_facts import facts
from synthetic_neurons import Collector, neuron_of

from meg_editor import MeGHyperParams, apply_meg_to_model, fit, load_model
from meg_editor.collection import shards
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.edits import live
from meg_editor.edits.conflicts import ConflictError
from meg_editor.edits.edit import edit_id
from meg_editor.model import merging
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.files import read_requests
from meg_editor.requests.request import EditRequest, RequestError
from meg_editor.routing.encoder import TextEncoder

FACTS = [case.request for case in edit_cases(load_world(), 8, 0)]


@pytest.fixture(scope="module")
def fitted() -> MeGModel:
    """The reference model with eight facts; `fork` it before a change."""
    hparams = MeGHyperParams.preset("default", device="cpu")
    edited, _ = fit(*load_model(hparams), FACTS, hparams)
    return edited


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    monkeypatch.setattr(live, "collect", collector := Collector())
    return collector


@pytest.fixture
def make(make_meg_model: Callable[..., MeGModel]) -> Callable[..., MeGModel]:
    """Models of which only an edited prompt itself is an edit."""

    def make(generator: str = "bank", **settings: Any) -> MeGModel:
        model = make_meg_model(generator, **settings)
        model.gate.threshold.fill_(0.999)
        return model

    return make


def texts(model: MeGModel) -> list[tuple[str, str]]:
    return [(edit.prompt, edit.target_new) for edit in model.edits]


# -------------------------------------------------------------------------------- export


def test_exported_edits_are_read_again(fitted: MeGModel, tmp_path: Path) -> None:
    edited = fitted.fork()
    edited.remove(FACTS[0].prompt)
    odd = EditRequest("Who is “Ål”?\nAnswer:", "a\u2028b 你好\r\n\tc", "Ål")
    edited.replace([EditRequest(FACTS[1].prompt, FACTS[2].target_new, FACTS[1].subject)])
    rows = edited.edition.rows([0])
    made = live.edits_of([odd], "add")
    edited._change("add", [], live.Rows(made, rows.anchors, rows.neurons))
    edited.export(tmp_path / "edits.jsonl")
    read = read_requests(tmp_path / "edits.jsonl").requests
    assert [r.texts[:3] for r in read] == [e.texts[:3] for e in edited.edits]
    lines = [
        json.loads(line) for line in (tmp_path / "edits.jsonl").read_text().split("\n") if line
    ]
    assert [line["id"] for line in lines] == [edit.id for edit in edited.edits]
    assert [line["by"] for line in lines] == ["fit"] * 6 + ["replace", "add"]
    assert lines[-1]["when"] == made[0].when and lines[-1]["state"] == "stored"
    again = edited.add(read)
    assert again.number == 0 and len(again.merged) == 8
    edited.remove([edit.id for edit in edited.edits])
    edited.export(tmp_path / "edits.jsonl")
    assert (tmp_path / "edits.jsonl").read_bytes() == b""
    with pytest.raises(OSError):
        edited.export(tmp_path)


# --------------------------------------------------------------------------------- merge


@pytest.mark.parametrize("generator", ["bank", "dit"])
def test_neurons_of_the_same_base_are_merged_as_they_are(
    make: Callable[..., MeGModel], collector: Collector, tmp_path: Path, generator: str
) -> None:
    other = make(generator)
    other.add(facts(8, 9))
    other.remove([PROMPTS[0]])
    other.save_pretrained(tmp_path / "other")
    model = make("bank")
    model.remove(PROMPTS[1:4])
    model.add(facts(10))
    collector.prompts.clear()
    change = model.merge(tmp_path / "other")
    assert change.kind == "merge" and not collector.prompts
    assert [edit.prompt for edit in change.added.edits] == [*PROMPTS[1:4], *PROMPTS[8:10]]
    assert {edit.by for edit in change.added.edits} == {"merge"}
    assert {edit.state for edit in model.edits} == {"stored"}
    assert {by for _, by in change.merged} == {edit_id(e) for e in other.edits[3:5]}
    moved = [*PROMPTS[1:4], *PROMPTS[8:10]]
    ours, theirs = model.neurons(model.route(moved)), other.neurons(other.route(moved))
    assert ours is not None and theirs is not None
    if generator == "bank":
        assert torch.equal(ours, theirs)
    else:  # generated in another batch, and so rounded otherwise: one step of float16 at most
        torch.testing.assert_close(ours, theirs, rtol=2**-10, atol=1e-6)
    model.undo()
    assert len(model.edits) == 4


def test_a_neuron_is_merged_whatever_its_edit_calls_the_subject(
    make: Callable[..., MeGModel], collector: Collector, tmp_path: Path
) -> None:
    """An edit without a subject gets that of the one it replaces, and was collected anew."""
    other, model = make(), make()
    other.replace([EditRequest(PROMPTS[0], "Lima")])
    other.save_pretrained(tmp_path / "other")
    model.replace([EditRequest(PROMPTS[0], "Oslo", PROMPTS[0].split()[-2])])
    collector.prompts.clear()
    model.merge(tmp_path / "other", on_conflict="replace")
    assert not collector.prompts and texts(model)[-1] == (PROMPTS[0], "Lima")
    ours, theirs = (m.neurons(m.route([PROMPTS[0]])) for m in (model, other))
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_merging_has_the_rules_of_adding(
    make: Callable[..., MeGModel], collector: Collector, tmp_path: Path
) -> None:
    other = make()
    other.replace(facts(0))
    other.save_pretrained(tmp_path / "other")
    model = make()
    before = texts(model)
    with pytest.raises(ConflictError, match=edit_id(facts(0)[0])):
        model.merge(tmp_path / "other")
    assert texts(model) == before and model.history() == ()
    model.merge(tmp_path / "other", on_conflict="replace")
    assert texts(model) == [*before[1:], (PROMPTS[0], "Lima")]
    assert model.merge(tmp_path / "other").number == 0
    other.remove([edit.id for edit in other.edits])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RequestError, match="no edit requests"):
        model.merge(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no edits saved by save_pretrained"):
        model.merge(tmp_path / "nowhere")


def test_neurons_of_another_base_layer_or_template_are_collected(
    make: Callable[..., MeGModel], collector: Collector, tmp_path: Path
) -> None:
    others = [make(), make(layers=[2]), make(prompt_template="Q: {}\nA:")]
    with torch.no_grad():
        others[0].base.model.embed_tokens.weight.add_(0.5)
    for number, other in enumerate(others):
        other.save_pretrained(tmp_path / f"{number}")
        model = make()
        model.remove(PROMPTS[:6])
        collector.prompts.clear()
        change = model.merge(tmp_path / f"{number}")
        assert collector.prompts == PROMPTS[:6] and len(change.added.edits) == 6
        neurons = model.neurons(model.route(PROMPTS[0]))
        assert neurons is not None
        assert torch.equal(neurons[0].half(), neuron_of(other.edits[0], model.spec.size).half())


# ------------------------------------------------------------------------------ reattach


def test_edits_hold_on_the_same_weights(fitted: MeGModel, collector: Collector) -> None:
    base = copy.deepcopy(fitted.base)
    moved, result = fitted.reattach(base)
    assert moved.base is base and not collector.prompts and moved.history() == ()
    assert [edit.id for edit in result.held] == [edit.id for edit in fitted.edits]
    assert repr(result) == "8 edits held, 0 collected anew"
    prompts = [fact.prompt for fact in FACTS]
    assert moved.answer(prompts) == fitted.answer(prompts)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_what_does_not_hold_is_collected_anew(fitted: MeGModel, tmp_path: Path, mode: Any) -> None:
    prompts, targets = [f.prompt for f in FACTS], [f.target_new for f in FACTS]
    for noise in (0.7, 0.8, 0.9, 1.0):
        base = copy.deepcopy(fitted.base)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for parameter in base.model.layers.parameters():
                parameter += noise * parameter.std() * torch.randn_like(parameter)
        with mode():
            moved, result = fitted.reattach(base)
        if result.collected and result.held:
            break
    assert result.collected and result.held and not result.not_learned
    held = {edit.prompt: edit.id for edit in result.held}
    assert {**held, **{e.prompt: e.id for e in result.collected}} == {
        edit.prompt: edit.id for edit in fitted.edits
    }
    assert moved.answer(prompts) == targets
    assert {edit.by for edit in moved.edits if edit.prompt not in held} == {"reattach"}
    assert f"{len(result.collected)} collected anew ('" in repr(result)
    # The model it came from is as it was.
    assert fitted.answer(prompts) == targets and {edit.by for edit in fitted.edits} == {"fit"}
    moved.save_pretrained(tmp_path / "moved")
    again = MeGModel.from_pretrained(tmp_path / "moved", base=base)
    assert again.answer(prompts) == targets


def test_a_base_of_another_size_gets_all_edits_collected(
    fitted: MeGModel,
    collector: Collector,
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    base = copy.deepcopy(tiny_llama)
    moved, result = fitted.reattach(base, tiny_tokenizer)
    assert not result.held and collector.prompts == [fact.prompt for fact in FACTS]
    assert moved.spec.hidden_size == 32 and moved.spec.layer < 3
    routing = moved.route([fact.prompt for fact in FACTS])
    assert routing.is_edit.all() and routing.nearest.tolist() == list(range(8))
    moved.save_pretrained(tmp_path / "moved")
    again = MeGModel.from_pretrained(tmp_path / "moved", base=base)
    assert again.answer(FACTS[0].prompt, 4) == moved.answer(FACTS[0].prompt, 4)


def test_a_trained_generator_moves_along(
    make: Callable[..., MeGModel], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("dit", gate_state_weight=0.0)
    monkeypatch.setattr(MeGModel, "_rightness", lambda _, __, rows: [[2, 2 * row] for row in rows])
    moved, result = model.reattach(copy.deepcopy(model.base))
    assert [edit.prompt for edit in result.held] == PROMPTS[1:6]
    assert collector.prompts == PROMPTS[:1] == [edit.prompt for edit in result.collected]
    assert [edit.state for edit in moved.edits] == ["generated"] * 5 + ["stored"]
    assert moved.answer(PROMPTS[1:6], 4) == model.answer(PROMPTS[1:6], 4)


def test_the_model_given_keeps_its_parts_on_its_device(
    fitted: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shared with a base on the same device, and copied for one elsewhere."""
    base = copy.deepcopy(fitted.base)
    for device, shared in (("cpu", True), ("meta", False)):
        of = {id(base): torch.device(device)}
        monkeypatch.setattr(
            merging, "input_device", lambda model, of=of: of.get(id(model), torch.device("cpu"))
        )
        moved, _ = fitted.reattach(base)
        pairs = [(moved.encoder, fitted.encoder), (moved.verifier, fitted.verifier)]
        assert [ours is theirs for ours, theirs in pairs] == [shared] * 2
        assert moved.answer(FACTS[0].prompt) == [FACTS[0].target_new]


def test_a_base_is_a_model(fitted: MeGModel) -> None:
    for bad in (None, "smollm2"):
        with pytest.raises(TypeError, match="base: expected a causal LM of transformers.*, got"):
            fitted.reattach(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected an unedited model, got a MeGModel: .*\.base"):
        fitted.reattach(fitted.fork())


def test_edits_found_by_hidden_states_stay(make: Callable[..., MeGModel]) -> None:
    model = make()  # gate_state_weight=0.5
    with pytest.raises(ValueError, match="hidden states of their base"):
        model.reattach(copy.deepcopy(model.base))


# ------------------------------------------------------------------------------ EasyEdit


def test_a_further_call_costs_its_own_facts_alone(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tiny_encoder: TextEncoder,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[str] = []

    def collect(model: Any, tokenizer: Any, spec: Any, requests: Any, *settings: Any) -> Any:
        fitted.extend(request.prompt for request in requests)
        return collector(model, tokenizer, spec, requests, *settings)

    monkeypatch.setattr(shards, "collect", collect)
    hparams = MeGHyperParams(
        layers=[1], encoder_steps=0, gate_threshold=0.999, generator="auto", gate_state_weight=0.0
    )
    options = {"pseudo": [], "calibration": []}
    arguments = (tiny_tokenizer, facts(0, 1, 2), hparams)
    first, _ = apply_meg_to_model(
        copy.deepcopy(tiny_llama), *arguments, encoder=tiny_encoder, **options
    )
    assert fitted == PROMPTS[:3]
    model, wrappers = first, [first]
    for row in range(3, 13):
        rows = facts(row) if row < 12 else facts(0, target="Oslo")
        collector.prompts.clear()
        model, weights = apply_meg_to_model(model, tiny_tokenizer, rows, hparams)
        assert weights == {} and collector.prompts == [rows[0].prompt]
        wrappers.append(model)
    assert fitted == PROMPTS[:3] and len({id(wrapper) for wrapper in wrappers}) == 11
    assert all(wrapper.base is first.base for wrapper in wrappers)
    assert [len(wrapper.edits) for wrapper in wrappers] == [*range(3, 13), 12]
    assert texts(model)[-1] == (PROMPTS[0], "Oslo") and texts(first)[0] == (PROMPTS[0], "Lima")
    # Other settings, an encoder or a copy are asked for.
    other = hparams.changed(gate_threshold=0.99)
    fitted.clear()
    apply_meg_to_model(first, tiny_tokenizer, facts(4), other, encoder=tiny_encoder, **options)
    assert fitted == [PROMPTS[4]]
    copied, _ = apply_meg_to_model(first, tiny_tokenizer, facts(4), hparams, copy=True)
    assert copied.base is not first.base and len(copied.edits) == 4 and fitted == [PROMPTS[4]]
    with pytest.raises(RequestError):
        apply_meg_to_model(first, tiny_tokenizer, [{"prompt": "x"}], hparams)
    assert len(first.edits) == 3 and first.history() == ()
