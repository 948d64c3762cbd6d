"""MEMIT, PMET, AlphaEdit and FT: EasyEdit's numbers, and what must hold whoever computes it.

What EasyEdit adds to the weights of two tiny models was recorded by
tests/parity/record_locate_methods.py, which also tells what of EasyEdit had to be worked around.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import tiny
from parity.record_locate_methods import (
    ALPHAEDIT,
    FT,
    FT_MOST,
    FT_ROWS,
    LAYERS,
    LOCATE,
    PMET,
    PMET_SMALL,
    second_moments,
)
from test_neuron import LAYER, VOCAB, all_families
from test_neuron import tiny as family_model
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from meg_editor.baselines.alphaedit import (
    AlphaEditHyperParams,
    apply_alphaedit_to_model,
    null_space,
)
from meg_editor.baselines.core import covariance, locate, target_values
from meg_editor.baselines.core.activations import activations_at
from meg_editor.baselines.core.fact_tokens import FactTokens, fact_tokens, lookup
from meg_editor.baselines.core.locate import least_squares, value_settings
from meg_editor.baselines.core.settings import LocateHyperParams
from meg_editor.baselines.core.split_rows import SplitRows
from meg_editor.baselines.core.target_values import TargetValues, ValueSettings, optimise_values
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.baselines.memit import MEMITHyperParams, apply_memit_to_model
from meg_editor.baselines.pmet import PMETHyperParams, apply_pmet_to_model
from meg_editor.lm.ffn import attention_name, block_name, decoder_blocks
from meg_editor.requests.request import EditRequest, RequestError, only_edits
from meg_editor.runtime.artifacts import ArtifactStore

RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("locate.json").read_text("utf-8"))
CLOSE = 1e-3  # of an update, by the norm of the difference

both_models = pytest.mark.parametrize("kind", ["gpt2", "llama"])

# method: (its function, its hyper-parameters as recorded)
SETTINGS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "MEMIT": (apply_memit_to_model, MEMITHyperParams, LOCATE),
    "PMET": (apply_pmet_to_model, PMETHyperParams, {**LOCATE, **PMET}),
    "AlphaEdit": (apply_alphaedit_to_model, AlphaEditHyperParams, {**LOCATE, **ALPHAEDIT}),
    "FT": (apply_ft_to_model, FTHyperParams, {**FT, "train_batch_size": FT_ROWS, "shuffle": False}),
}
MATERIAL = {"texts": tiny.TEXTS, "prefixes": tiny.PREFIXES}


def quick(method: str) -> dict[str, Any]:
    """Settings for tests to which it does not matter what is found."""
    return {"num_steps": 2} if method == "FT" else {"v_num_grad_steps": 3}


tokenizer = cache(tiny.tokenizer)
_model = cache(tiny.model)


def fresh(kind: str) -> Any:
    """A model of its own."""
    return copy.deepcopy(_model(kind))


def edit(
    method: str,
    kind: str,
    model: Any,
    facts: Any = tiny.FACTS,
    material: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """The edited model and the original weights."""
    apply, hparams, settings = SETTINGS[method]
    settings = {**settings, "target_end": False, **changes}
    if method == "FT":
        settings["rewrite_module_tmp"] = tiny.down(kind)
    requests = tiny.rows(facts) if isinstance(facts[0], tuple) else facts
    return apply(
        model,
        tokenizer(kind),
        requests,
        hparams.from_dict(settings),
        return_orig_weights=True,
        **{**MATERIAL, **(material or {})},
    )


def updates(model: Any, originals: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an edit added."""
    return {name: model.get_parameter(name) - old for name, old in originals.items()}


def assert_close(found: dict[str, Tensor], recorded: dict[str, Any]) -> None:
    """Every update agrees with the recorded one."""
    assert set(found) == set(recorded)
    for name, numbers in recorded.items():
        expected = torch.tensor(numbers)
        assert found[name].shape == expected.shape
        difference = (found[name] - expected).norm() / expected.norm()
        assert difference < CLOSE, f"{name}: {difference:.2e}"


def moment_matrix(kind: str, layer: int) -> Tensor:
    """The second moment of one layer's keys, in double precision."""
    return second_moments(kind, _model(kind))[tiny.down(kind).format(layer)].double()


def tokens(kind: str, prefixes: Sequence[str] = tiny.PREFIXES, **changes: Any) -> list[FactTokens]:
    """The facts as tokens."""
    hparams = MEMITHyperParams(**{**LOCATE, "target_end": False, **changes})
    return fact_tokens(tokenizer(kind), only_edits(tiny.rows(tiny.FACTS)), prefixes, hparams)


# ------------------------------------------------------------------------- EasyEdit's numbers


@both_models
def test_recorded_for_these_models(kind: str) -> None:
    """Where this fails alone, the tiny models have changed: record again."""
    assert tiny.fingerprint(kind) == RECORDED[kind]["fingerprint"]


@both_models
@pytest.mark.parametrize("method", ["MEMIT", "PMET"])
def test_updates_are_easyedits(method: str, kind: str) -> None:
    """Some facts reach the clamp, one its target, after which PMET weighs that less."""
    assert_close(updates(*edit(method, kind, fresh(kind))), RECORDED[kind][method])


@both_models
def test_pmet_ends_where_easyedits_does(kind: str) -> None:
    """With a small divergence a fact ends as soon as its target is the likeliest answer."""
    model, originals = edit("PMET", kind, fresh(kind), kl_factor=PMET_SMALL)
    assert_close(updates(model, originals), RECORDED[kind]["PMET, small kl_factor"])


@both_models
def test_alphaedit_is_easyedits_in_two_calls(kind: str) -> None:
    """One fact is finished early. EasyEdit solves in single precision, by one projection for all
    calls: that of the model before the first edit, which `earlier` carries.
    """
    earlier: dict[str, Tensor] = {}
    model, originals = edit("AlphaEdit", kind, fresh(kind), material={"earlier": earlier})
    assert_close(updates(model, originals), RECORDED[kind]["AlphaEdit"])
    model, originals = edit("AlphaEdit", kind, model, tiny.LATER, {"earlier": earlier})
    assert_close(updates(model, originals), RECORDED[kind]["AlphaEdit, second call"])


@both_models
def test_what_alphaedit_carries(kind: str) -> None:
    """The second call would be another one without the first one's keys and projection."""
    few = quick("AlphaEdit")
    earlier: dict[str, Tensor] = {}
    model, _ = edit("AlphaEdit", kind, fresh(kind), material={"earlier": earlier}, **few)
    for layer in LAYERS:
        moment, keys = earlier[tiny.down(kind).format(layer)]
        torch.testing.assert_close(moment, moment_matrix(kind, layer).float())
        assert torch.linalg.matrix_rank(keys) == len(tiny.FACTS)
    first = {name: both.clone() for name, both in earlier.items()}
    forgetful, originals = edit("AlphaEdit", kind, copy.deepcopy(model), tiny.LATER, **few)
    alone = updates(forgetful, originals)
    carried, originals = edit("AlphaEdit", kind, model, tiny.LATER, {"earlier": earlier}, **few)
    for name, update in updates(carried, originals).items():
        assert (update - alone[name]).norm() > 0.01 * update.norm()
    for name, (moment, keys) in earlier.items():
        assert torch.equal(moment, first[name][0])
        added = keys - first[name][1]
        assert torch.linalg.matrix_rank(added, rtol=1e-5) == len(tiny.LATER)


@both_models
@pytest.mark.parametrize("most", [None, FT_MOST])
def test_ft_is_easyedits(kind: str, most: float | None) -> None:
    """In EasyEdit only the target counts, in the order of the requests. Its padding is on the
    left, where GPT-2 needs explicit position ids; ours is on the right, where it does not.
    """
    model, originals = edit("FT", kind, fresh(kind), norm_constraint=most)
    found = updates(model, originals)
    name = "FT" if most is None else "FT, norm_constraint"
    assert_close(found, RECORDED[kind][name])
    if most is not None:
        largest = max(float(update.abs().max()) for update in found.values())
        assert largest == pytest.approx(most, rel=1e-3)


# ------------------------------------------------------------------------- the solves


def test_least_squares_solves_the_normal_equations() -> None:
    torch.manual_seed(0)
    keys, residuals = torch.randn(4, 9).double(), torch.randn(4, 5).double()
    spread = torch.randn(20, 9).double()
    retained = spread.T @ spread
    update = least_squares(keys, residuals, retained)
    torch.testing.assert_close(update @ (keys.T @ keys + retained), residuals.T @ keys)
    best = ((update @ keys.T - residuals.T) ** 2).sum() + (update @ retained * update).sum()
    for _ in range(5):  # and nothing near it is better
        other = update + 0.01 * torch.randn(5, 9).double()
        loss = ((other @ keys.T - residuals.T) ** 2).sum() + (other @ retained * other).sum()
        assert loss > best


@pytest.mark.parametrize("method", ["MEMIT", "PMET", "AlphaEdit"])
def test_layers_are_edited_in_their_order_whatever_that_of_the_covariance(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors come back sorted by name: layer 10 before layer 9."""
    layers, moments = {"layers": [1, 2], **quick(method)}, locate.Locate.moments
    plain, _ = edit(method, "llama", fresh("llama"), **layers)
    monkeypatch.setattr(
        locate.Locate, "moments", lambda self, m: dict(reversed(moments(self, m).items()))
    )
    stored, _ = edit(method, "llama", fresh("llama"), **layers)
    for name, value in stored.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@both_models
def test_memit_in_one_layer_with_nothing_to_keep_reaches_every_value(kind: str) -> None:
    hparams = MEMITHyperParams(**{**LOCATE, "layers": [2], "target_end": False})
    facts, block = tokens(kind, [""]), block_name(_model(kind), 2)
    values = optimise_values(_model(kind), facts, 2, [block], value_settings(hparams), 256)
    model, _ = edit(
        "MEMIT",
        kind,
        fresh(kind),
        tiny.FACTS,
        {"prefixes": [""]},
        layers=[2],
        mom2_update_weight=1e-9,
    )
    prompts, places = [f.rows[0].prompt for f in facts], [f.lookups[0] for f in facts]
    said = activations_at(model, prompts, places, [block])[block].outputs
    expected = values.target(block)
    assert (said - expected).norm() < 1e-3 * expected.norm()
    assert (said - values.before[block]).norm() > 0.5 * expected.norm()


@both_models
def test_alphaedit_changes_nothing_in_the_kept_space(kind: str) -> None:
    model, originals = edit("AlphaEdit", kind, fresh(kind))
    for layer in LAYERS:
        name = tiny.down(kind).format(layer)
        size, vectors = torch.linalg.eigh(moment_matrix(kind, layer))
        retained = vectors[:, size >= ALPHAEDIT["nullspace_threshold"]].T.float()
        free = vectors[:, size < ALPHAEDIT["nullspace_threshold"]].T.float()
        assert 5 < len(retained) < tiny.INNER - 5
        new, old = (m.get_submodule(name) for m in (model, _model(kind)))
        changes = [(new(keys) - old(keys)).norm() for keys in (retained, free)]
        assert changes[0] < 1e-4 * changes[1] and changes[1] > 0.1
        assert set(originals) == {f"{tiny.down(kind).format(n)}.weight" for n in LAYERS}


def test_null_space_is_a_projection() -> None:
    torch.manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(7, 7).double())
    sizes = torch.tensor([0.001, 0.3, 0.019, 2.0, 0.0, 5.0, 0.021]).double()
    projection = null_space(vectors @ sizes.diag() @ vectors.T, 0.02)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection, projection.T)
    expected = vectors * (sizes < 0.02)  # the free vectors stay, the others vanish
    torch.testing.assert_close(projection @ vectors, expected)


@both_models
def test_covariance_is_the_mean_of_k_k_without_padding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [tiny.down(kind).format(layer) for layer in LAYERS]
    expected = second_moments(kind, _model(kind))

    def found(texts: list[str], length: int = 99) -> dict[str, Tensor]:
        store = ArtifactStore()
        arguments = (_model(kind), tokenizer(kind), texts, names, length, store, torch.float64)
        return covariance.second_moments(*arguments)

    rows = {len(tokenizer(kind)(text)["input_ids"]) for text in tiny.TEXTS}
    assert len(rows) > 3  # so that rows are padded
    for rows_at_once in (64, 3):
        monkeypatch.setattr(covariance, "_ROWS", rows_at_once)
        for texts in (tiny.TEXTS, tiny.TEXTS[::-1], tiny.TEXTS[3:] + tiny.TEXTS[:3]):
            result = found(texts)
            assert list(result) == names
            for name, moment in result.items():
                torch.testing.assert_close(moment.float(), expected[name])
    one = found(["The capital of Genovia is Pyrus."], length=3)
    start = tokenizer(kind)("The capital of Genovia is Pyrus.")["input_ids"][:3]
    rows_of_one = [start] * 3
    keys = activations_at(_model(kind), rows_of_one, [0, 1, 2], names)
    for name, moment in one.items():
        inputs = keys[name].inputs.double()
        torch.testing.assert_close(moment, inputs.T @ inputs / 3, rtol=1e-4, atol=1e-6)


def blocks_that_run(model: Any) -> list[int]:
    """A list which grows by the number of every block that is entered from now on."""
    ran: list[int] = []
    for number, block in enumerate(decoder_blocks(model)[1]):
        next(block.children()).register_forward_hook(lambda *_, n=number: ran.append(n))
    return ran


@both_models
def test_activations_end_with_the_last_module_that_is_read(kind: str) -> None:
    model, name = fresh(kind), tiny.down(kind)
    ran = blocks_that_run(model)
    rows = [list(row) for row in tokenizer(kind)(tiny.TEXTS)["input_ids"]]
    ends = [len(row) - 1 for row in rows]
    found = activations_at(model, rows, ends, [name.format(2), name.format(0)], 4)
    assert sorted(ran) == [0, 0, 1, 1, 2, 2]  # in two batches
    whole = activations_at(model, rows, ends, [name.format(n) for n in (0, 2, 4)], 4)
    for module, activations in found.items():
        assert all(map(torch.equal, activations, whole[module]))


@both_models
def test_covariances_end_with_the_last_module_that_is_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "_ROWS", 4)
    model, name = fresh(kind), tiny.down(kind)
    ran = blocks_that_run(model)
    arguments = (model, tokenizer(kind), tiny.TEXTS)
    names = [name.format(n) for n in (2, 0)]
    found = covariance.second_moments(*arguments, names, 99, ArtifactStore())
    assert sorted(ran) == [0, 0, 1, 1, 2, 2]  # in two batches
    names = [name.format(n) for n in (0, 2, 4)]
    whole = covariance.second_moments(*arguments, names, 99, ArtifactStore())
    assert all(torch.equal(moment, whole[module]) for module, moment in found.items())


@both_models
@pytest.mark.parametrize(("method", "share"), [("MEMIT", 2), ("PMET", 2**0.5)])
def test_how_residuals_are_spread(
    method: str, share: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MEMIT divides by the number of layers left, PMET by its square root."""
    given: list[Tensor] = []

    def nothing(keys: Tensor, residuals: Tensor, retained: Tensor) -> Tensor:
        given.append(residuals)
        return torch.zeros(residuals.shape[1], keys.shape[1], dtype=keys.dtype)

    monkeypatch.setattr(locate, "least_squares", nothing)
    edit(method, kind, fresh(kind), v_num_grad_steps=2)
    first, second = given
    assert second.norm() > 0.1
    torch.testing.assert_close(first * share, second)


# ------------------------------------------------------------------------- target values

VALUES = ValueSettings(lr=0.5, steps=20, decay=1e-3, clamp=2.0, kl=0.002)


def block_values(kind: str, settings: ValueSettings, rows: int = 256) -> TargetValues:
    """The values of all facts, at block 2."""
    model = _model(kind)
    return optimise_values(model, tokens(kind), 2, [block_name(model, 2)], settings, rows)


def norms(values: TargetValues) -> tuple[Tensor, Tensor]:
    """(N,) of shifts and of what was before, of the only module."""
    (shift,), (before,) = values.shift.values(), values.before.values()
    return shift.norm(dim=1), before.norm(dim=1)


@both_models
def test_facts_do_not_see_each_other(kind: str) -> None:
    together, alone = (block_values(kind, VALUES, rows) for rows in (10**6, 1))
    for ours, theirs in ((together.shift, alone.shift), (together.before, alone.before)):
        for name, expected in theirs.items():
            assert (ours[name] - expected).norm() < 1e-3 * expected.norm()
    torch.testing.assert_close(together.probability, alone.probability, rtol=1e-2, atol=1e-6)


@both_models
def test_finished_facts_keep_their_values(kind: str) -> None:
    shorter, longer = (
        block_values(kind, ValueSettings(**{**vars(VALUES), "steps": steps})) for steps in (20, 26)
    )
    (short,), (long,) = shorter.shift.values(), longer.shift.values()
    finished = shorter.probability > 0.95
    assert finished.tolist() == [False] * 5 + [True]
    torch.testing.assert_close(short[finished], long[finished], rtol=1e-3, atol=1e-3)
    assert bool(((short - long)[~finished].norm(dim=1) > 0.1).all())
    endless = ValueSettings(**{**vars(VALUES), "early_stop": False})
    (on,) = block_values(kind, endless).shift.values()
    assert (on - short)[finished].norm() > 0.1


@both_models
def test_shifts_stay_within_their_clamp(kind: str) -> None:
    shift, before = norms(block_values(kind, VALUES))
    free, _ = norms(block_values(kind, ValueSettings(**{**vars(VALUES), "clamp": None})))
    beyond = free > 2 * before
    assert bool(beyond.any())
    assert bool((shift <= 2 * before * (1 + 1e-5)).all())
    torch.testing.assert_close(shift[beyond], 2 * before[beyond])


def plain_loss(
    model: Any, fact: FactTokens, modules: Sequence[str], shift: Tensor, settings: ValueSettings
) -> float:
    """The loss of one fact by whole forward passes, one row at a time; shift is (modules, D)."""

    def logits(row: list[int], place: int, amount: Tensor) -> Tensor:
        with shifted(model, modules, place, amount) as before:
            out = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        norms.append([b.norm() for b in before])
        return out

    norms: list[list[Tensor]] = []
    each = []
    for row, place in zip(fact.rows, fact.lookups, strict=True):
        logp = logits(row.prompt + row.target, place, shift)
        start = len(row.prompt) - 1
        each.append(-sum(logp[start + n, t] for n, t in enumerate(row.target)) / len(row.target))
    assert fact.essence is not None
    row, place = fact.essence.prompt, fact.essence_lookup
    now, old = (logits(row, place, amount)[place] for amount in (shift, 0 * shift))
    divergence = (now.exp() * (now - old)).sum()
    norms.clear()
    logits(fact.rows[0].prompt, fact.lookups[0], 0 * shift)
    decay = sum(s.norm() / b**2 for s, b in zip(shift, norms[0], strict=True))
    total = settings.nll * sum(each) / len(each) + settings.kl * divergence + settings.decay * decay
    return float(total)


@contextmanager
def shifted(
    model: Any, modules: Sequence[str], place: int, amount: Tensor
) -> Iterator[list[Tensor]]:
    """Adds `amount` to what leaves the modules at one token; gives what left them before."""
    before = [torch.tensor([]) for _ in modules]

    def add(_: Any, __: Any, output: Any, number: int) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        before[number] = whole[0, place].clone()
        changed = whole.clone()
        changed[0, place] += amount[number]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda *args, number=number: add(*args, number)
        )
        for number, name in enumerate(modules)
    ]
    try:
        yield before
    finally:
        for handle in handles:
            handle.remove()


def in_double(model: Any) -> Any:
    """The model in double precision, also where Llama's norms turn to single."""
    for module in model.double().modules():
        if isinstance(module, LlamaRMSNorm):

            def norm(x: Tensor, module: Any = module) -> Tensor:
                mean = x.square().mean(-1, keepdim=True)
                return module.weight * x * torch.rsqrt(mean + module.variance_epsilon)

            module.forward = norm  # type: ignore[method-assign]
    return model


@both_models
@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_gradients_are_those_of_the_plain_loss(
    joint: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step's too, where the divergence and the decay are no longer zero."""
    model = fresh(kind)
    modules = [block_name(model, 2)]
    if joint:
        modules = [tiny.down(kind).format(2), attention_name(model, 2)]
    facts = tokens(kind)
    torch.manual_seed(0)
    bump = 0.5 * torch.randn(len(modules), len(facts), tiny.HIDDEN)
    gradients: list[Tensor] = []
    order: list[int] = []

    def noted(self: Any, shift: Tensor, gradient: Tensor, *_: Any) -> Tensor:
        gradients.append(gradient.double())
        return shift + bump[:, order]

    monkeypatch.setattr(target_values._ValueOptimiser, "_adam", noted)
    order += sorted(range(len(facts)), key=lambda i: facts[i].longest_tail)  # how they are batched
    settings = ValueSettings(lr=1.0, steps=3, decay=0.3, kl=0.7, nll=0.9, early_stop=False)
    with torch.enable_grad():
        optimise_values(model, facts, 2, modules, settings, 10**6)
    assert len(gradients) == 2
    double, step = in_double(model), 1e-5
    for at, gradient in zip((0 * bump, bump), gradients, strict=True):
        for place, index in enumerate(order):
            way = torch.randn(len(modules), tiny.HIDDEN).double()
            middle = at[:, index].double()
            # the norm has its corner at zero: it is the same on both sides, its gradient zero
            up, down = (
                plain_loss(double, facts[index], modules, middle + sign * step * way, settings)
                for sign in (1, -1)
            )
            expected = (up - down) / (2 * step)
            found = float((gradient[:, place] * way).sum())
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


# ------------------------------------------------------------------------- split rows


@all_families
@torch.no_grad()
def test_tails_are_those_of_whole_rows(family: str) -> None:
    model: Any = family_model(family)
    generator = torch.Generator().manual_seed(3)
    lengths, cuts = [9, 5, 12, 7, 4], [4, 0, 9, 6, 3]
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    whole = [model.get_decoder()(input_ids=torch.tensor([r])).last_hidden_state[0] for r in rows]

    def check(split: SplitRows, chosen: list[int]) -> None:
        for _ in range(2):  # again: the first pass leaves nothing behind
            found = split.hidden()
            for place, index in enumerate(chosen):
                expected = whole[index][cuts[index] :]
                ours = found[place, : len(expected)]
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

    for layer in range(LAYER + 1):
        split = SplitRows(model, layer, rows, cuts)
        check(split, [0, 1, 2, 3, 4])
        split.select(torch.tensor([True, False, True, True, False]))
        check(split, [0, 2, 3])
        split.select(torch.tensor([False, True, False]))
        check(split, [2])
    uncut = SplitRows(model, LAYER, rows, [0] * len(rows))
    cuts[:] = [0] * len(rows)
    check(uncut, [0, 1, 2, 3, 4])
    uncut.select(torch.tensor([False, True, False, False, True]))
    check(uncut, [1, 4])


# ------------------------------------------------------------------------- facts as tokens


@both_models
@pytest.mark.parametrize("template", ["{}", "Question: {}\nAnswer:"])
def test_the_last_subject_token_is_looked_up(template: str, kind: str) -> None:
    tok = tokenizer(kind)
    for fact, (prompt, subject, target) in zip(
        tokens(kind, prompt_template=template), tiny.FACTS, strict=True
    ):
        for prefix, row, place in zip(tiny.PREFIXES, fact.rows, fact.lookups, strict=True):
            ids = row.prompt
            assert tok.decode(ids, skip_special_tokens=True) == prefix + template.format(prompt)
            assert tok.decode(row.target) == f" {target}"
            assert tok.decode(ids[: place + 1], skip_special_tokens=True).endswith(subject)
            assert not tok.decode(ids[:place], skip_special_tokens=True).endswith(subject)
        assert fact.essence is not None
        ids, place = fact.essence.prompt, fact.essence_lookup
        assert tok.decode(ids, skip_special_tokens=True) == f"{subject} is a"
        assert tok.decode(ids[: place + 1], skip_special_tokens=True) == subject


@both_models
def test_other_tokens_to_look_up(kind: str) -> None:
    tok = tokenizer(kind)

    def text(before: str, subject: str, after: str, token: str) -> str:
        place = lookup(tok, before, subject, after, token)
        return str(tok.decode([tok(before + subject + after)["input_ids"][place]]))

    parts = ("The king of ", "New Erewhon", " was")
    first = tok(" New", add_special_tokens=False)["input_ids"]
    assert text(*parts, "subject_first") == tok.decode(first[:1])
    assert text(*parts, "subject_first_after_last") == " was"
    assert text(*parts, "last") == " was"
    opening = tok("New", add_special_tokens=False)["input_ids"]
    assert text("", "New Erewhon", " was", "subject_first") == tok.decode(opening[:1])
    ending = (" is the river ", "Don", "")
    assert text(*ending, "subject_first_after_last") == text(*ending, "subject_last")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "The king of Erewhon was", "target_new": "x"},
            r"^request 1: field 'subject' is missing, which fact_token 'subject_last' needs; "
            r"give it, or use fact_token 'last'$",
        ),
        (
            {"prompt": "The king of Erewhon was", "target_new": "x", "subject": "erewhon"},
            r"^request 1: the subject 'erewhon' does not stand in the prompt 'The king of Erewhon "
            r"was'; spell it as there, or use fact_token 'last'$",
        ),
    ],
)
@pytest.mark.parametrize("method", ["MEMIT", "PMET", "AlphaEdit"])
def test_subjects_which_cannot_be_found_are_named(
    method: str, row: dict[str, str], words: str
) -> None:
    model = fresh("llama")
    with pytest.raises(RequestError, match=words):
        edit(method, "llama", model, [*tiny.rows(tiny.FACTS[:1]), row])
    assert_unchanged(model, "llama")


def test_a_subject_is_no_part_of_another_word() -> None:
    hparams = LocateHyperParams.from_dict({**LOCATE, "fact_token": "subject_last"})
    tok = tokenizer("llama")
    looked_up = []
    for prompt in ("Annabel's friend Ann was born in", "Annabel's friend Ada was born in"):
        subject = prompt.split()[2]
        (fact,) = fact_tokens(tok, [EditRequest(prompt, "Rome", subject)], [""], hparams)
        looked_up.append(tok.decode(fact.rows[0].prompt[: fact.lookups[0] + 1]))
    assert [text.split()[-2:] for text in looked_up] == [["friend", "Ann"], ["friend", "Ada"]]
    (fact,) = fact_tokens(tok, [EditRequest("Annabel is in", "Rome", "Ann")], [""], hparams)
    assert "is in" not in tok.decode(fact.rows[0].prompt[: fact.lookups[0] + 1])


def test_without_subjects_the_last_token_serves() -> None:
    hparams = LocateHyperParams.from_dict({**LOCATE, "fact_token": "last"})
    edits = [EditRequest("The capital of Atlantis is", "Rome")]
    (fact,) = fact_tokens(tokenizer("llama"), edits, tiny.PREFIXES, hparams)
    assert fact.essence is None
    assert fact.lookups == tuple(len(row.prompt) - 1 for row in fact.rows)


# ------------------------------------------------------------------------- the model afterwards


def assert_unchanged(model: Any, kind: str) -> None:
    """Bit for bit, hooks and gradients too."""
    for name, old in _model(kind).named_parameters():
        new = model.get_parameter(name)
        assert torch.equal(new, old) and new.requires_grad == old.requires_grad
        assert new.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@both_models
@pytest.mark.parametrize("method", SETTINGS)
def test_originals_restore_the_model(method: str, kind: str) -> None:
    model, originals = edit(method, kind, fresh(kind), tiny.FACTS[:2], **quick(method))
    before, after = dict(_model(kind).named_parameters()), dict(model.named_parameters())
    changed = {name for name, new in after.items() if not torch.equal(new, before[name])}
    assert changed == set(originals) != set()
    with torch.no_grad():
        for name, value in originals.items():
            model.get_parameter(name).copy_(value)
    assert_unchanged(model, kind)


@both_models
@pytest.mark.parametrize("method", SETTINGS)
def test_a_copy_is_edited_alone(method: str, kind: str) -> None:
    model = fresh(kind)
    edited, originals = edit(method, kind, model, tiny.FACTS[:1], {"copy": True}, **quick(method))
    assert edited is not model and originals
    assert_unchanged(model, kind)


@pytest.mark.parametrize("method", SETTINGS)
def test_contradictions_leave_the_model_alone(method: str) -> None:
    model = fresh("gpt2")
    prompt, subject, _ = tiny.FACTS[0]
    with pytest.raises(RequestError, match=r"request 0 and .*|request 6 and request 0"):
        edit(method, "gpt2", model, [*tiny.FACTS, (prompt, subject, "Don")])
    assert_unchanged(model, "gpt2")


@pytest.mark.parametrize("method", SETTINGS)
def test_an_update_which_is_not_finite_leaves_the_model_alone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meg_editor.config.settings._check_range", lambda *_: None)
    model = fresh("llama")
    earlier: dict[str, Tensor] = {}
    changes: dict[str, Any] = {"v_lr": 1e38}
    if method == "FT":
        changes = {"optimizer": "sgd", "lr": 1e38, "weight_decay": 1e30}
    carried = {"earlier": earlier} if method == "AlphaEdit" else {}
    with pytest.raises(FloatingPointError, match="the update of .* is not finite; lower"):
        edit(method, "llama", model, tiny.FACTS[:2], carried, **changes)
    assert_unchanged(model, "llama")
    assert earlier == {}


@pytest.mark.parametrize("method", SETTINGS)
def test_gradient_flags_stay(method: str) -> None:
    model = fresh("llama")
    names = [name for name, _ in model.named_parameters()]
    for index, name in enumerate(names):
        model.get_parameter(name).requires_grad_(index % 2 == 0)
    flags = [model.get_parameter(name).requires_grad for name in names]
    edit(method, "llama", model, tiny.FACTS[:2], **quick(method))
    assert [model.get_parameter(name).requires_grad for name in names] == flags
    assert all(model.get_parameter(name).grad is None for name in names)
