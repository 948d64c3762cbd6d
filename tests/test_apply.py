"""apply_meg_to_model: what is fitted on, how edits join, and that the model given stays."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS, build_tiny_llama
from torch import Tensor, nn

from meg_editor.collection import shards
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.apply import apply_meg_to_model
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, RequestError
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore

SETTINGS = MeGHyperParams(
    layers=[1],
    encoder_steps=2,
    gate_threshold=0.99,  # given: no calibration
    collection_steps=10,
    generator="bank",
)
FIRST = [{"prompt": prompt, "target_new": "Paris"} for prompt in PROMPTS[:3]]
LATER = [{"prompt": prompt, "target_new": "Lima"} for prompt in PROMPTS[3:5]]
TUNING = [
    EditRequest(prompt, "x", rephrases=(f"Say: {prompt}",), locality_prompts=(other,))
    for prompt, other in zip(PROMPTS[8:13], OTHERS, strict=True)
]
POISON = "POISON which no one may fit on"


@pytest.fixture(scope="module")
def tiny_llama(tiny_tokenizer: Any) -> Any:
    """Of these tests alone, which count hooks: the shared one may bear some of other tests."""
    return build_tiny_llama(tiny_tokenizer)


@pytest.fixture
def apply(tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder) -> Any:
    """apply(requests, model=a copy of tiny_llama, hparams=SETTINGS, **options) -> the model."""

    def apply(requests: Any, model: Any = None, hparams: Any = SETTINGS, **options: Any) -> Any:
        model = copy.deepcopy(tiny_llama) if model is None else model
        defaults = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
        edited, weights = apply_meg_to_model(
            model, tiny_tokenizer, requests, hparams, **{**defaults, **options}
        )
        assert weights == {}
        return edited

    return apply


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts which neurons are collected for from now on."""
    prompts: list[str] = []
    real = shards.collect

    def collect(model: Any, tokenizer: Any, spec: Any, requests: Any, *settings: Any) -> Any:
        prompts.extend(request.prompt for request in requests)
        return real(model, tokenizer, spec, requests, *settings)

    monkeypatch.setattr(shards, "collect", collect)
    return prompts


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def neurons_of(model: MeGModel, prompt: str) -> Tensor:
    neurons = model.neurons(model.route([prompt]))
    assert neurons is not None, f"{prompt!r} is not taken for an edit"
    return neurons[0]


def assert_same_model(ours: MeGModel, theirs: MeGModel) -> None:
    assert ours.edits == theirs.edits
    assert torch.equal(ours.collected, theirs.collected)
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    for (name, value), (other_name, other) in pairs:
        assert name == other_name and torch.equal(value, other), name


def test_the_model_is_routed_and_the_base_keeps_every_bit(
    apply: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    base = copy.deepcopy(tiny_llama)
    batch = tiny_tokenizer(PROMPTS[0], return_tensors="pt")
    edited = apply(FIRST, base, copy=False, return_orig_weights=True, keep_original_weight=True)
    assert isinstance(edited, MeGModel) and edited.base is base
    assert [edit.prompt for edit in edited.edits] == PROMPTS[:3]
    for name, value in tiny_llama.state_dict().items():
        assert torch.equal(base.state_dict()[name], value), name
    with torch.no_grad():
        before = tiny_llama(**batch).logits
        assert torch.equal(base(**batch).logits, before)
        assert not torch.equal(edited(**batch).logits, before)


def test_nothing_but_prompt_target_and_subject_is_fitted_on(apply: Any) -> None:
    plain = [{**row, "subject": "Atlantis"} for row in FIRST]
    hparams = MeGHyperParams.from_dict(
        {**SETTINGS.to_dict(), "gate_threshold": None, "collection_contexts": 3}
    )
    poisoned = [
        {
            **row,
            "rephrase_prompt": f"{POISON}?",
            "rephrases": [POISON],
            "ground_truth": POISON,
            "target_neg": POISON,
            "loc_prompt": POISON,
            "locality_prompts": [POISON, PROMPTS[0]],
            "locality": {"nb": {"prompt": [POISON], "ground_truth": [POISON]}},
            "portability": {"hop": {"prompt": PROMPTS[7], "ground_truth": POISON}},
            "case_id": 7,
        }
        for row in plain
    ]
    ours = apply(plain, hparams=hparams)
    assert_same_model(apply(poisoned, hparams=hparams), ours)
    assert ours.edits == tuple(EditRequest(p, "Paris", "Atlantis") for p in PROMPTS[:3])
    other = [{**row, "target_new": "Rome"} for row in plain]
    assert not torch.equal(apply(other, hparams=hparams).collected, ours.collected)


def test_requests_which_are_no_mappings(apply: Any) -> None:
    rows = [EditRequest(row["prompt"], row["target_new"]) for row in FIRST]
    assert_same_model(apply(rows), apply(FIRST))
    with pytest.raises(RequestError, match="request 0: expected an object.*got str"):
        apply(FIRST[0])  # the row itself instead of a list: its keys


def test_a_prompt_with_a_gap_gets_the_subject(apply: Any) -> None:
    row = {"prompt": "The capital of {} is", "target_new": "Paris", "subject": "Atlantis"}
    assert apply([row]).edits == (EditRequest(PROMPTS[0], "Paris", "Atlantis"),)


def test_an_edited_model_gets_one_new_wrapper_around_its_base(apply: Any) -> None:
    first = apply(FIRST)
    both = apply(LATER, first)
    assert both.base is first.base and not isinstance(both.base, MeGModel)
    assert not any(isinstance(m, MeGModel) for m in both.modules() if m is not both)
    assert [edit.prompt for edit in both.edits] == PROMPTS[:5]
    routing = both.route(PROMPTS[:5])
    assert routing.is_edit.all() and routing.nearest.tolist() == [0, 1, 2, 3, 4]
    for row, prompt in enumerate(PROMPTS[:5]):
        distance = (neurons_of(both, prompt) - both.collected).norm(dim=1)
        # A bank rounds to 16 bits.
        assert int(distance.argmin()) == row
        assert distance[row] < 1e-3 * both.collected[row].norm()
    assert [edit.prompt for edit in first.edits] == PROMPTS[:3]
    assert not first.route(PROMPTS[3:5]).is_edit.any()


def test_earlier_neurons_are_taken_as_they_are(apply: Any, collected: list[str]) -> None:
    first = apply(FIRST)
    assert collected == PROMPTS[:3]
    first.collected[0] += 1  # no collection would find this one
    both = apply(LATER, first)
    assert collected == PROMPTS[:5]
    assert torch.equal(both.collected[:3], first.collected)
    third = apply([{"prompt": PROMPTS[5], "target_new": "Rome"}], both)
    assert collected == PROMPTS[:6]
    assert torch.equal(third.collected[:5], both.collected)


def test_a_layer_that_is_not_named_is_the_same_place(apply: Any, collected: list[str]) -> None:
    chosen = SETTINGS.changed(layers=None)
    first = apply(FIRST, hparams=chosen)
    assert first.hparams.layers and collected == PROMPTS[:3]
    apply(LATER, first, hparams=chosen)
    assert collected == PROMPTS[:5]
    elsewhere = SETTINGS.changed(layers=[1 - first.hparams.layer])
    assert elsewhere.layers != first.hparams.layers
    apply(LATER, first, hparams=elsewhere)
    assert collected == PROMPTS[:5] + PROMPTS[:5]


def test_earlier_neurons_are_taken_as_they_are_whatever_the_store_remembers(apply: Any) -> None:
    store = ArtifactStore(None)
    apply([*FIRST, *LATER], store=store)  # the same facts at once
    first = apply(FIRST, store=store)
    both = apply(LATER, first, store=store)
    assert torch.equal(both.collected[:3], first.collected)


def test_a_later_target_replaces_the_earlier_one(apply: Any, collected: list[str]) -> None:
    first = apply(FIRST)
    rest = [row for row, prompt in enumerate(PROMPTS[:3]) if prompt != PROMPTS[1]]
    for prompt in (PROMPTS[1], PROMPTS[1].replace(" ", "  ")):  # one prompt, as within a call
        collected.clear()
        later = apply([{"prompt": prompt, "target_new": "Lima"}], first)
        assert [(e.prompt, e.target_new) for e in later.edits] == [
            (PROMPTS[0], "Paris"),
            (PROMPTS[2], "Paris"),
            (prompt, "Lima"),
        ]
        assert collected == [prompt]
        assert torch.equal(later.collected[:2], first.collected[rest])
    assert first.edits[1].target_new == "Paris"


def test_facts_are_collected_anew_for_another_layer(apply: Any, collected: list[str]) -> None:
    first = apply(FIRST)
    moved = MeGHyperParams.from_dict({**SETTINGS.to_dict(), "layers": [2]})
    later = apply(LATER, first, hparams=moved)
    assert collected == [*PROMPTS[:3], *PROMPTS[:5]]
    assert_same_model(later, apply([*FIRST, *LATER], hparams=moved))


def test_a_model_from_disk_can_be_edited_further(
    apply: Any, collected: list[str], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    first = apply(FIRST)
    first.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(
        tmp_path / "edits", base=copy.deepcopy(first.base), tokenizer=tiny_tokenizer
    )
    assert loaded.collected is None
    both = apply(LATER, loaded)
    assert collected == PROMPTS[:5]
    assert [edit.prompt for edit in both.edits] == PROMPTS[:5]
    assert torch.equal(both.collected[:3], loaded.generator.generate(loaded.anchors))
    assert torch.allclose(both.collected[:3], first.collected, rtol=1e-3, atol=1e-3)
    assert both.route(PROMPTS[:5]).nearest.tolist() == [0, 1, 2, 3, 4]


def test_a_copy_leaves_the_original_alone(apply: Any, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    base = copy.deepcopy(tiny_llama)
    edited = apply(FIRST, base, copy=True)
    assert edited.base is not base and hooks(base) == 0
    one = hooks(edited.base)
    assert one > 0
    again = apply(LATER, edited, copy=True)
    assert again.base is not edited.base
    assert hooks(again.base) == hooks(edited.base) == one  # not those of both wrappers
    assert torch.equal(again.collected[:3], edited.collected)
    for prompt, model in ((PROMPTS[0], edited), (PROMPTS[0], again), (PROMPTS[3], again)):
        batch = tiny_tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            plain = tiny_llama(**batch).logits
            assert torch.equal(base(**batch).logits, plain)
            assert not torch.equal(model(**batch).logits, plain)


def test_hparams_of_another_method_are_refused(apply: Any, tiny_llama: Any) -> None:
    class FTHyperParams(SimpleNamespace):
        pass

    with pytest.raises(TypeError, match="hparams: expected MeGHyperParams, got FTHyperParams"):
        apply(FIRST, hparams=FTHyperParams(alg_name="FT"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([FIRST[0], {"prompt": "x"}], "request 1: field 'target_new' is missing"),
        ([FIRST[0], {"prompt": "x", "target_new": None}], "request 1: field 'target_new'"),
        ([{"prompt": " ", "target_new": "x"}], "request 0: field 'prompt' is empty"),
        ([{**FIRST[0], "target_new": 5}], "request 0: field 'target_new' must be text"),
        ([FIRST[0], {**FIRST[0], "target_new": "Lima"}], "request 1 and request 0 ask for differ"),
        ([], "no edit requests"),
    ],
)
def test_bad_requests_leave_nothing_half_edited(
    apply: Any, tiny_llama: Any, rows: Any, words: str
) -> None:
    base = copy.deepcopy(tiny_llama)
    with pytest.raises(RequestError, match=words):
        apply(rows, base)
    assert hooks(base) == 0
    edited = apply(FIRST, base)
    before, state = hooks(base), copy.deepcopy(edited.state_dict())
    with pytest.raises(RequestError, match=words):
        apply(rows, edited)
    assert hooks(base) == before and [e.prompt for e in edited.edits] == PROMPTS[:3]
    assert all(torch.equal(state[name], value) for name, value in edited.state_dict().items())


def test_easyedits_pair_of_model_and_tokenizer(
    apply: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    base = copy.deepcopy(tiny_llama)
    base.name_or_path = "some/model"
    hparams = MeGHyperParams.from_dict(SETTINGS.to_dict())
    pair: Any = (base, tiny_tokenizer)
    hparams.model_name = pair
    before = dict(vars(hparams))
    edited = apply(FIRST, base, hparams=hparams)
    assert edited.hparams.model_name == "some/model"
    assert {
        **edited.hparams.to_dict(),
        "model_name": "",
        "gate": SETTINGS.gate,
    } == SETTINGS.to_dict()
    assert hparams.model_name is pair and vars(hparams) == before
    assert apply(LATER, edited, hparams=hparams).hparams.model_name == "some/model"


def test_dropped_wrappers_take_their_hooks_along(apply: Any, tiny_llama: Any) -> None:
    base = copy.deepcopy(tiny_llama)
    edited = apply(FIRST, base)
    one = hooks(base)
    for row in LATER:
        edited = apply([row], edited)
    gc.collect()
    assert hooks(base) == one > 0
    del edited
    gc.collect()
    assert hooks(base) == 0


def test_many_edits_of_a_model_from_disk_are_generated_in_batches(
    apply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 65,536 edits anchors are in half precision, and no batch could hold all neurons."""
    monkeypatch.setattr("meg_editor.routing.index._MANY", 2)
    edited = apply(
        FIRST,
        hparams=SETTINGS.changed(
            generator="mlp", generator_width=16, generator_depth=1, generator_steps=20
        ),
    )
    assert edited.anchors.dtype == torch.float16
    edited.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=edited.base)
    sizes: list[int] = []
    real = loaded.generator.generate

    def generate(conditions: Tensor, steps: int | None = None) -> Tensor:
        assert conditions.dtype == torch.float32
        sizes.append(len(conditions))
        return real(conditions, steps)

    monkeypatch.setattr(loaded.generator, "generate", generate)
    neurons = loaded.generated_neurons(rows=2)
    assert sizes == [2, 1] and neurons.shape == (3, loaded.spec.size)
    assert len(apply(LATER, loaded).edits) == 5
