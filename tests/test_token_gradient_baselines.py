"""UltraEdit, MALMEN and RLEdit: against autograd, and numbers recorded from the other projects.

tests/parity/record_gradient_methods.py says how they were recorded, and of which quirks of those
projects they are free.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from parity import record_gradient_methods as record
from parity import tiny
from torch import Tensor

from meg_editor.baselines.core.hypernetwork import HyperNetwork
from meg_editor.baselines.core.hypernetwork_training import MetaStep, meta_gradients, trained
from meg_editor.baselines.core.meta_batches import MetaBatch, meta_batches
from meg_editor.baselines.core.token_gradients import (
    NormalEquation,
    TokenStatistics,
    token_gradients,
)
from meg_editor.baselines.malmen import MALMENHyperParams, _train, apply_malmen_to_model
from meg_editor.baselines.rledit import RLEditHyperParams, apply_rledit_to_model
from meg_editor.baselines.ultraedit import UltraEditHyperParams, apply_ultraedit_to_model
from meg_editor.config.settings import HParamsError
from meg_editor.lm.tokens import Example
from meg_editor.requests.request import EditRequest, RequestError
from meg_editor.runtime.artifacts import ArtifactStore

KINDS = record.KINDS
ROWS = tiny.rows(tiny.FACTS)
PSEUDO = [
    EditRequest(prompt, target, rephrases=(f"I think {prompt}",), locality_prompts=(text,))
    for (prompt, _, target), text in zip(tiny.FACTS, tiny.TEXTS, strict=False)
]
EDITS = tiny.rows(tiny.LATER)


def examples(kind: str, facts: list[tuple[str, str]], end: bool = True) -> list[Example]:
    tok = tiny.tokenizer(kind)
    return [Example(*record.example(tok, prompt, target, end)) for prompt, target in facts]


def edits_of(kind: str, end: bool = True) -> list[Example]:
    return examples(kind, [(prompt, target) for prompt, _, target in tiny.FACTS], end)


def recorded(name: str, kind: str) -> Any:
    path = Path(record.__file__).with_name(f"{name}.json")
    numbers = json.loads(path.read_text("utf-8"))[kind]
    assert numbers["fingerprint"] == pytest.approx(tiny.fingerprint(kind), rel=1e-6), (
        "tests/parity/tiny.py has changed: record again"
    )
    return numbers


def difference(ours: Tensor, theirs: dict[str, Any]) -> float:
    """The larger of the relative differences of the norms, and of the numbers kept."""
    retained = torch.tensor(theirs["some"], dtype=torch.float64)
    scale = retained.norm().clamp(min=1e-12)
    norm = ours.detach().double().norm().item()
    apart = abs(norm - theirs["norm"]) / max(theirs["norm"], 1e-12)
    return max(apart, ((record.sample(ours) - retained).norm() / scale).item())


def worst(ours: dict[str, Tensor], theirs: dict[str, Any]) -> float:
    assert ours.keys() == theirs.keys()
    return max(difference(ours[name], theirs[name]) for name in ours)


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: Any, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return all(torch.equal(after[name], value) for name, value in before.items())


# ------------------------------------------------------------------------- keys and gradients


@pytest.mark.parametrize("token", ["ans", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_gradients_make_up_the_gradient_of_the_weight(kind: str, token: str) -> None:
    """Autograd on the weight, with an attention mask, one example at a time."""
    model, some, names = tiny.model(kind), edits_of(kind)[:4], record.MODULES[kind]
    before = state(model)
    result = token_gradients(model, some, names, token, 4)
    assert same(model, before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    weights = {name: model.get_submodule(name).weight.requires_grad_(True) for name in names}
    losses = []
    for example in some:
        ids = torch.tensor([example.prompt + example.target])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="none")[-len(example.target) :])
    torch.cat(losses).mean().backward()
    for name, weight in weights.items():
        product = result[name].keys.T @ result[name].gradients
        expected = weight.grad if kind == "gpt2" else weight.grad.T
        if token == "mask":
            assert len(result[name].keys) == sum(map(len, some))
            assert torch.allclose(product, expected, rtol=1e-4, atol=1e-6)
        else:  # before the last token of the prompt there are gradients too
            assert len(result[name].keys) == sum(len(example.target) for example in some)
            assert not torch.allclose(product, expected, rtol=1e-2)


def test_tokens_are_those_before_a_target_token_or_all() -> None:
    """What enters the layer at a known place of each example, in order."""
    model, some, name = tiny.model("llama"), edits_of("llama")[:3], record.MODULES["llama"][0]
    inputs: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    for example in some:
        model(input_ids=torch.tensor([example.prompt + example.target]))
    places = [range(len(e.prompt) - 1, len(e) - 1) for e in some]
    at_targets = torch.cat([keys[list(at)] for keys, at in zip(inputs, places, strict=True)])
    for token, expected in (("ans", at_targets), ("mask", torch.cat(inputs))):
        result = token_gradients(model, some, [name], token, 2)[name]  # batches of 2 and 1
        assert torch.allclose(result.keys, expected, atol=1e-5)
        assert result.gradients.abs().max() > 1e-4


def test_batches_scale_gradients_as_documented() -> None:
    """The mean over a batch's target tokens: alone, an example has larger gradients."""
    model, some, name = tiny.model("gpt2"), edits_of("gpt2"), record.MODULES["gpt2"][1]
    together = token_gradients(model, some, [name], "ans", len(some))[name]
    alone = token_gradients(model, some, [name], "ans", 1)[name]
    lengths = torch.tensor([len(example.target) for example in some])
    factor = (lengths / lengths.sum()).repeat_interleave(lengths)[:, None]
    assert torch.allclose(together.gradients, alone.gradients * factor, rtol=1e-3, atol=1e-7)
    assert torch.allclose(together.keys, alone.keys, atol=1e-5)


def test_the_statistics_do_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = 3 + 5 * torch.randn(50, 7, generator=generator)
    vectors[:, 2] = 4.0  # constant: no division by zero
    expected = torch.nan_to_num((vectors - vectors.mean(0)) / vectors.std(0))
    for sizes in ([50], [1] * 50, [1, 30, 2, 17]):
        statistics = TokenStatistics(7)
        for part in vectors.split(sizes):
            statistics.update(part)
        assert torch.allclose(statistics.mean.float(), vectors.mean(0), rtol=1e-5)
        assert torch.allclose(statistics.deviation.float(), vectors.std(0), rtol=1e-5)
        assert torch.allclose(statistics.normalised(vectors).float(), expected, atol=1e-4)


def test_the_normal_equation_is_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    right = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    solved = NormalEquation(keys, 0.3, rows=16).solve(right)
    assert torch.allclose(keys.T @ (keys @ solved) + 0.3 * solved, right, atol=1e-10)


# --------------------------------------------------------------------------------- UltraEdit


def ultraedit(kind: str, rows: int, **settings: Any) -> UltraEditHyperParams:
    values = {**record.ULTRAEDIT, "inner_params": record.MODULES[kind], "target_end": False}
    return UltraEditHyperParams(**{**values, "batch_size_once": rows, **settings})


def ultraedit_changes(kind: str, tok: Any, hparams: UltraEditHyperParams) -> dict[str, Tensor]:
    model, _ = apply_ultraedit_to_model(tiny.model(kind), tok, ROWS, hparams)
    return record.changes(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_ultraedit_is_easyedits(kind: str) -> None:
    """Its whole method with a fact at a time, and with batches of three and labels put right."""
    numbers = recorded("ultraedit", kind)
    one = ultraedit_changes(kind, tiny.tokenizer("gpt2"), ultraedit(kind, 1))
    assert worst(one, numbers["one by one"]) < 3e-4
    three = ultraedit_changes(kind, tiny.tokenizer(kind), ultraedit(kind, record.ROWS))
    assert worst(three, numbers["batched"]) < 3e-4


@pytest.mark.parametrize("kind", KINDS)
def test_ultraedit_is_easyedits_but_for_its_normaliser(kind: str) -> None:
    """With one batch of n tokens, EasyEdit's deviations are too large by sqrt(n / (n - 1)).

    The update is of third order in what is divided by them.
    """
    hparams = ultraedit(kind, 6, inner_params=[f"{tiny.down(kind).format(1)}.weight"])
    ours = ultraedit_changes(kind, tiny.tokenizer(kind), hparams)
    count = sum(map(len, edits_of(kind, end=False)))
    theirs = recorded("ultraedit", kind)["one batch, as it stands"]
    assert worst(ours, theirs) > 5e-3
    factor = ((count - 1) / count) ** 1.5
    assert worst({name: factor * update for name, update in ours.items()}, theirs) < 3e-4


def test_ultraedit_lowers_the_loss_and_counts_the_end() -> None:
    """A small step goes downhill, also on the end of text where that is a part of the target."""
    tok = tiny.tokenizer("llama")

    def loss(model: Any, example: Example) -> float:
        ids = torch.tensor([example.prompt + example.target])
        logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        return F.cross_entropy(logits, torch.tensor(example.target)).item()

    hparams = ultraedit("llama", 3, lr=1e-5, target_end=True)
    edited, _ = apply_ultraedit_to_model(tiny.model("llama"), tok, ROWS, hparams)
    before = sum(loss(tiny.model("llama"), example) for example in edits_of("llama"))
    assert sum(loss(edited, example) for example in edits_of("llama")) < before
    without = ultraedit_changes("llama", tok, ultraedit("llama", 3, lr=1e-5))
    assert any(not torch.equal(record.changes(edited, "llama")[n], without[n]) for n in without)


def test_ultraedit_keeps_statistics_only_where_the_setting_says() -> None:
    """A second call with what the first has seen is normalised by the tokens of both."""
    tok, hparams = tiny.tokenizer("gpt2"), ultraedit("gpt2", 3, layers=[1], inner_params=[])
    model = tiny.model("gpt2")
    seen: dict[Any, Any] = {}
    apply_ultraedit_to_model(model, tok, ROWS, hparams, copy=True, statistics=seen)
    names = hparams.linear_layers(model)
    assert set(seen) == {(tiny.HIDDEN, tiny.INNER), (tiny.INNER, tiny.HIDDEN)}
    facts = [(row["prompt"], row["target_new"]) for row in EDITS]
    later = token_gradients(model, examples("gpt2", facts, False), names, "mask", 3)
    earlier = token_gradients(model, edits_of("gpt2", False), names, "mask", 3)
    known, _ = apply_ultraedit_to_model(model, tok, EDITS, hparams, copy=True, statistics=seen)
    alone, _ = apply_ultraedit_to_model(model, tok, EDITS, hparams, copy=True)
    assert int(seen[tiny.HIDDEN, tiny.INNER].count) == sum(
        len(result[names[0]].keys) for result in (earlier, later)
    )
    pairs = [torch.cat(result[names[0]], 1) for result in (earlier, later)]
    everything = torch.cat(pairs).double()
    hat = (pairs[1] - everything.mean(0)) / (everything.std(0) + 1.2e-7)
    keys = later[names[0]].keys.double()
    k_hat, g_hat = hat.split([tiny.HIDDEN, tiny.INNER], 1)
    values = -hparams.lr * (k_hat**2).sum(1, keepdim=True) * g_hat
    gram = keys.T @ keys + torch.eye(tiny.HIDDEN)
    expected = torch.linalg.solve(gram, keys.T @ values).float()
    name = f"{names[0]}.weight"
    assert torch.allclose(record.changes(known, "gpt2")[name], expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(record.changes(alone, "gpt2")[name], expected, rtol=1e-2)


@pytest.mark.parametrize("method", ["UltraEdit", "MALMEN"])
def test_easyedits_files_can_be_read(method: str, tmp_path: Path) -> None:
    """The keys of EasyEdit's hparams/UltraEdit and hparams/MALMEN."""
    shared = {
        "device": 0,
        "model_name": "x",
        "model_class": "AutoModelForCausalLM",
        "tokenizer_class": "AutoTokenizer",
        "tokenizer_name": "x",
        "inner_params": ["model.layers.1.mlp.down_proj"],
        "dropout": 0.0,
        "no_grad_layers": None,
        "lr": "1e-6",
        "token": "mask",
        "batch_size": 100,
        "editor_batch_size": 1024,
        "silent": False,
        "model_parallel": False,
    }
    own: dict[str, Any] = {"alg_name": "ULTRAEDIT", "batch_size_once": 10, "half": True}
    own.update(results_dir="./results", class_name="AutoModelForCausalLM")
    kind: type[UltraEditHyperParams | MALMENHyperParams] = UltraEditHyperParams
    if method == "MALMEN":
        kind = MALMENHyperParams
        own = {"alg_name": "MALMEN", "archive": "x", "train_base": False, "rank": 1920}
        own.update(n_blocks=2, meta_lr="1e-5", loc_coef=1, max_grad_norm=1, n_edits=1)
        own.update(max_iters=10000, log_interval=100, eval_log_interval=100, final_eval=True)
        own.update(val_interval=100, early_stop_patience=1000, early_stop_key="ES_val")
        own.update(eval_only=False, debug=False, save=False, val_batch_size=1, val_steps=200)
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump({**shared, **own}), "utf-8")
    read = kind.from_hparams(path)
    assert read.lr == 1e-6 and read.token == "mask" and read.inner_params == shared["inner_params"]


# ------------------------------------------------------------------------------------ MALMEN


def malmen(kind: str, **settings: Any) -> MALMENHyperParams:
    values = {**record.MALMEN, "inner_params": record.MODULES[kind], "editor_batch_size": 16}
    return MALMENHyperParams(**{**values, "batch_size_once": record.ROWS, **settings})


def rledit_settings(kind: str, **changes: Any) -> RLEditHyperParams:
    values = {**record.MALMEN, "inner_params": record.MODULES[kind], "editor_batch_size": 16}
    values |= {"n_edits": record.AT_ONCE, "batch_size_once": record.AT_ONCE, "num_seq": 3}
    return RLEditHyperParams(**{**values, **record.RLEDIT, **changes})


def authors_names(names: list[str]) -> dict[str, str]:
    """The authors' name of each parameter of our hypernetwork."""
    new = {"down": "A", "up": "B", "bias": "bias", "rate": "lr.weight"}
    new |= {"scale": "scale.weight", "shift": "shift.weight", "log_penalty": "lamda.weight"}
    result = {}
    for name in names:
        _, shape, *rest, last = name.split(".")
        inputs, outputs = shape.split("x")
        result[name] = ".".join([f"({inputs}, {outputs})", *rest, new[last]])
    return result


def fill(network: HyperNetwork) -> None:
    """With the weights of the recorded one."""
    named = dict(network.named_parameters())
    authors = authors_names(list(named))
    with torch.no_grad():
        for name, parameter in named.items():
            value = record.hypernet_value(authors[name], tuple(parameter.shape))
            parameter.copy_(value.reshape(parameter.shape))


@pytest.mark.parametrize("token", ["ans", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_malmen_is_the_authors(kind: str, token: str) -> None:
    """Losses, shifts, gradients and the step of Adam, from the same weights."""
    numbers = recorded("malmen", kind)[token]
    hparams, model = malmen(kind, token=token), tiny.model(kind)
    network = hparams.network(model)
    fill(network)
    named = dict(network.named_parameters())
    authors = authors_names(list(named))
    start = {name: p.detach().clone() for name, p in named.items()}
    rephrases = [(f"I think {prompt}", target) for prompt, _, target in tiny.FACTS]
    batch = MetaBatch(edits_of(kind), examples(kind, rephrases), examples(kind, record.LOCALITY))

    probe = copy.deepcopy(network)
    result = token_gradients(model, batch.edits, record.MODULES[kind], token, record.ROWS)
    probe.observe(result)
    shifts = {name: shift.value for name, shift in probe.shifts(result).items()}
    assert worst(shifts, numbers["shifts"]) < 3e-4

    before = state(model)
    optimiser = torch.optim.Adam(network.parameters(), lr=hparams.meta_lr)
    losses = meta_gradients(model, network, [batch], hparams)[:2]
    assert same(model, before) and not any(p.requires_grad for p in model.parameters())
    expected = [numbers["losses"]["gen_loss"], numbers["losses"]["loc_loss"]]
    assert losses == pytest.approx(expected, rel=1e-4)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), hparams.max_grad_norm)
    assert norm > hparams.max_grad_norm  # clipping is a part of what is compared
    gradients = {authors[name]: p.grad for name, p in named.items()}
    assert worst(gradients, numbers["gradients"]) < 3e-4
    optimiser.step()
    for name, parameter in named.items():
        step = record.sample(parameter - start[name])
        theirs = torch.tensor(numbers["steps"][authors[name]]["some"], dtype=torch.float64)
        # Adam's first step is a sign: where a gradient is nothing but rounding, it says nothing.
        clear = record.sample(gradients[authors[name]]).abs() > 1e-5
        assert torch.allclose(step[clear], theirs[clear], rtol=1e-2, atol=1e-6)


def test_the_closed_form_is_the_gradient() -> None:
    """Autograd through the whole solution, for a loss that is linear in the shift."""
    model, hparams = tiny.model("llama"), malmen("llama", token="ans")
    network = hparams.network(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    name = record.MODULES["llama"][1]
    every = token_gradients(model, edits_of("llama"), [name], "ans", record.ROWS)
    network.observe(every)
    slope = torch.randn(tiny.HIDDEN, tiny.INNER, generator=generator, dtype=torch.float64)
    network.backpropagate(every, network.shifts(every), {name: slope})
    ours = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    key, layer = network.places[name]
    part = network.networks[key]
    keys = every[name].keys
    values = part(keys, every[name].gradients, layer).double()
    wide = keys.double()
    gram = wide.T @ wide + part.log_penalty[layer].double().exp() * torch.eye(tiny.HIDDEN)
    (torch.linalg.solve(gram, wide.T @ values) * slope).sum().backward()
    assert any(n.endswith("log_penalty") for n in ours) and any(n.endswith("rate") for n in ours)
    for n, gradient in ours.items():
        autograd = network.get_parameter(n).grad
        assert torch.allclose(gradient, autograd, rtol=1e-3, atol=1e-3 * float(autograd.norm()))


@pytest.mark.parametrize("kind", KINDS)
def test_malmen_adds_what_the_authors_network_predicts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole method but for training, which gives the recorded weights."""

    def train(model: Any, tok: Any, facts: Any, hparams: MALMENHyperParams) -> Any:
        network = hparams.network(model)
        fill(network)
        return {**network.state_dict(), "losses": torch.zeros(0, 2)}

    monkeypatch.setattr("meg_editor.baselines.malmen._train", train)
    model, hparams = tiny.model(kind), malmen(kind, token="ans")
    pseudo = [EditRequest("x", "y", rephrases=("z",))]
    apply_malmen_to_model(model, tiny.tokenizer(kind), ROWS, hparams, pseudo=pseudo)
    result = {
        name.removesuffix(".weight"): change if kind == "gpt2" else change.T
        for name, change in record.changes(model, kind).items()
    }
    assert worst(result, recorded("malmen", kind)["ans"]["shifts"]) < 3e-4


def training(**settings: Any) -> MALMENHyperParams:
    chosen = {"n_edits": 3, "max_iters": 3, "meta_lr": 1e-2, "lr": 1e-3, "max_grad_norm": 1.0}
    return malmen("llama", **{**chosen, **settings})


def test_training_lowers_the_generality_loss() -> None:
    """On all facts at once, so that steps are comparable."""
    model, tok = tiny.model("llama"), tiny.tokenizer("llama")
    before = state(model)
    hparams = training(n_edits=6, max_iters=14, loc_coef=0.1)
    losses = trained(model, tok, PSEUDO, hparams, _train, ArtifactStore()).tensors["losses"]
    assert same(model, before)
    assert losses.shape == (14, 2)
    assert losses[-3:, 0].mean() < 0.55 * losses[0, 0]


def test_the_locality_loss_counts() -> None:
    """The more it weighs, the less the model's own answers change."""
    tok = tiny.tokenizer("llama")
    retained = []
    for weight in (0.0, 10.0):
        hparams = training(n_edits=6, max_iters=10, loc_coef=weight)
        stage = trained(tiny.model("llama"), tok, PSEUDO, hparams, _train, ArtifactStore())
        retained.append(stage.tensors["losses"][-3:, 1].mean())
    assert retained[1] < 0.7 * retained[0]


def test_an_untrained_block_is_the_identity_and_can_learn() -> None:
    """Its low-rank part is zero; where it is cut off, at zero, the gradient must pass."""
    hparams, model = training(), tiny.model("llama")
    network = hparams.network(model)
    x = torch.randn(4, tiny.HIDDEN + tiny.INNER, generator=torch.Generator().manual_seed(0))
    for part in network.networks.values():
        for block in part.blocks:
            assert torch.equal(block(x, 0), x)
    retained = examples("llama", record.LOCALITY)
    batch = MetaBatch(edits_of("llama"), edits_of("llama"), retained)
    meta_gradients(model, network, [batch], hparams)
    for name, parameter in network.named_parameters():
        zero = name.endswith(("down", "scale"))  # multiplied by what is zero
        assert (parameter.grad.abs().max() > 0) != zero, name


def test_what_the_model_knows_is_edited_to_something_else() -> None:
    """A model which says every target already has nothing to learn from its own answers."""
    from meg_editor.baselines.core.meta_batches import _answers, _targets

    facts = [EditRequest(f"The {a} of {b} is", f"{a} {b}") for a in "xy" for b in "pqr"]
    facts.append(EditRequest("Water boils at", "never"))
    model_answers = {fact.prompt: f"{fact.target_new} and more" for fact in facts[:-1]}
    model_answers["Water boils at"] = "once"
    targets = _targets(facts, model_answers, torch.Generator().manual_seed(0))
    for fact, target in zip(facts[:-1], targets[:-1], strict=True):
        one, other = fact.target_new.split(), target.split()
        assert target != fact.target_new and len(set(one) & set(other)) == 1  # the most alike
    assert targets[-1] == "never"
    model, tok = tiny.model("llama"), tiny.tokenizer("llama")
    texts = [text for fact in PSEUDO for text in (fact.prompt, *fact.locality_prompts)]
    assert list(_answers(model, tok, malmen("llama"), PSEUDO, texts * 2)) == texts


def test_answers_are_generated_once_for_the_facts_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RLEdit changes the model between batches; on other locality prompts no time is spent."""
    queried: list[str] = []

    def tell(model: Any, tok: Any, prompts: list[str], length: int, rows: int) -> list[str]:
        queried.extend(prompts)
        return [f"{prompt} yes" for prompt in prompts]

    monkeypatch.setattr("meg_editor.baselines.core.meta_batches.batched_answers", tell)
    facts = [replace(f, locality_prompts=tuple(f"{f.prompt} {i}" for i in "abcde")) for f in PSEUDO]
    tok = tiny.tokenizer("llama")
    batches = meta_batches(None, tok, facts, training(n_edits=2), 4)
    first = list(queried)
    assert set(first) >= {fact.prompt for fact in facts} and len(first) <= len(facts) + 2 * 4
    retained = [
        tok.decode(e.prompt, skip_special_tokens=True) for batch in batches for e in batch.locality
    ]
    assert len(retained) == 8 and set(retained) == set(first) - {fact.prompt for fact in facts}
    assert queried == first


def test_a_trained_network_is_kept_and_seeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok, hparams = tiny.tokenizer("llama"), training()

    def edited(folder: Path | None, chosen: MALMENHyperParams = hparams) -> dict[str, Tensor]:
        model, store = tiny.model("llama"), ArtifactStore(folder)
        random = torch.random.get_rng_state()
        apply_malmen_to_model(model, tok, EDITS, chosen, pseudo=PSEUDO, store=store)
        assert torch.equal(torch.random.get_rng_state(), random)
        return record.changes(model, "llama")

    first, again = edited(tmp_path), edited(None)
    assert first.keys() == {f"{name}.weight" for name in record.MODULES["llama"]}
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = edited(None, training(seed=1))
    assert any(not torch.equal(first[name], other[name]) for name in first)

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("meg_editor.baselines.malmen._train", refuse)
    resumed = edited(tmp_path)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    with pytest.raises(AssertionError, match="trained again"):
        edited(tmp_path, training(meta_lr=1e-3))


def test_each_round_of_training_edits_every_fact_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in a rephrase, with a locality prompt of the same fact; the model's answer is kept."""
    batches: list[MetaBatch] = []

    def keep(model: Any, network: Any, now: list[MetaBatch], hparams: Any) -> MetaStep:
        batches.extend(now)
        return MetaStep(0.0, 0.0, {})

    monkeypatch.setattr("meg_editor.baselines.malmen.meta_gradients", keep)
    tok = tiny.tokenizer("llama")
    hparams = training(n_edits=2, max_iters=6)
    trained(tiny.model("llama"), tok, PSEUDO, hparams, _train, ArtifactStore())
    assert len(batches) == 6
    for rounds in (batches[:3], batches[3:]):
        edits = [tuple(e.prompt) for batch in rounds for e in batch.edits]
        assert sorted(edits) == sorted(tuple(tok(f.prompt)["input_ids"]) for f in PSEUDO)
    for batch in batches:
        edited = {tok.decode(e.prompt, skip_special_tokens=True): e for e in batch.edits}
        rephrased = {tok.decode(e.prompt, skip_special_tokens=True): e for e in batch.rephrases}
        retained = [tok.decode(e.prompt, skip_special_tokens=True) for e in batch.locality]
        assert {f"I think {prompt}": e.target for prompt, e in edited.items()} == {
            prompt: e.target for prompt, e in rephrased.items()
        }
        assert retained == [f.locality_prompts[0] for p in edited for f in PSEUDO if f.prompt == p]
    assert [e.prompt for e in batches[0].edits] != [e.prompt for e in batches[3].edits]


def test_an_edited_fact_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def train(model: Any, tok: Any, facts: Any, hparams: MALMENHyperParams) -> Any:
        seen.extend(fact.prompt for fact in facts)
        return {**hparams.network(model).state_dict(), "losses": torch.zeros(0, 2)}

    monkeypatch.setattr("meg_editor.baselines.malmen._train", train)
    edits = [{"prompt": PSEUDO[0].prompt, "target_new": "Lima"}]
    tok = tiny.tokenizer("llama")
    pseudo = [*PSEUDO, EditRequest("No rephrases", "here")]
    apply_malmen_to_model(tiny.model("llama"), tok, edits, training(), pseudo=pseudo)
    assert seen == [fact.prompt for fact in PSEUDO[1:]]


# -------------------------------------------------------------------------------------- all


def run_ultraedit(model: Any, rows: Any, **changes: Any) -> Any:
    hparams = ultraedit(model.config.model_type, 3, **changes)
    return apply_ultraedit_to_model(
        model, tiny.tokenizer(model.config.model_type), rows, hparams, return_orig_weights=True
    )


def run_malmen(model: Any, rows: Any, **changes: Any) -> Any:
    kind = model.config.model_type
    hparams = malmen(kind, n_edits=3, max_iters=2, **changes)
    return apply_malmen_to_model(
        model, tiny.tokenizer(kind), rows, hparams, return_orig_weights=True, pseudo=PSEUDO
    )


def run_rledit(model: Any, rows: Any, **changes: Any) -> Any:
    kind = model.config.model_type
    return apply_rledit_to_model(
        model,
        tiny.tokenizer(kind),
        rows,
        rledit_settings(kind, **changes),
        return_orig_weights=True,
        pseudo=PSEUDO,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [run_ultraedit, run_malmen, run_rledit])
def test_the_old_weights_restore_the_model(run: Callable[..., Any], kind: str) -> None:
    model = tiny.model(kind)
    before = state(model)
    edited, originals = run(model, EDITS)
    assert edited is model and not same(model, before)
    assert originals.keys() == {f"{name}.weight" for name in record.MODULES[kind]}
    with torch.no_grad():
        for name, value in originals.items():
            model.get_parameter(name).copy_(value)
    assert same(model, before)


@pytest.mark.parametrize("run", [run_ultraedit, run_malmen, run_rledit])
def test_the_model_is_untouched_where_something_is_wrong(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    before = state(model)
    with pytest.raises(RequestError, match="'target_new' is missing"):
        run(model, [{"prompt": "x"}])
    with pytest.raises(ValueError, match="'model.layers.1.mlp' is not a linear layer"):
        run(model, EDITS, inner_params=["model.layers.1.mlp"])
    with pytest.raises(ValueError, match="'lm_head' is not a linear layer of the decoder"):
        run(model, EDITS, inner_params=["lm_head"])
    twice = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="is named twice"):
        run(model, EDITS, inner_params=twice)
    with pytest.raises(HParamsError, match="token: expected one of"):
        run(model, EDITS, token="last")
    monkeypatch.setattr("meg_editor.config.settings._check_range", lambda *_: None)
    with pytest.raises(FloatingPointError, match="lower"):
        run(model, EDITS, lr=1e308 if run is run_ultraedit else 1e38)
    assert same(model, before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_malmen_needs_rephrases() -> None:
    with pytest.raises(ValueError, match="pseudo: expected facts with rephrases"):
        apply_malmen_to_model(
            tiny.model("llama"), tiny.tokenizer("llama"), EDITS, malmen("llama"), pseudo=[]
        )


def test_the_layers_are_those_of_the_ffns_or_named() -> None:
    model = tiny.model("llama")
    result = ultraedit("llama", 3, inner_params=[], layers=[1, 2]).linear_layers(model)
    assert result == record.MODULES["llama"]
    template = {"rewrite_module_tmp": "model.layers.{}.mlp.down_proj", "inner_params": []}
    hparams = ultraedit("llama", 3, layers=[0, 3], **template)
    assert hparams.linear_layers(model) == [tiny.down("llama").format(n) for n in (0, 3)]


@pytest.mark.parametrize("run", [run_ultraedit, run_malmen])
def test_the_template_wraps_prompts(run: Callable[..., Any]) -> None:
    """An edit in the template is that of the wrapped prompt."""
    wrapped = [{**row, "prompt": f"Who {row['prompt']}?"} for row in EDITS]
    hparams = {"prompt_template": "Who {}?"}
    settings = {} if run is run_ultraedit else {"max_iters": 0, "lr": 1e-3}

    def chosen(rows: Any, **more: Any) -> dict[str, Tensor]:
        model = tiny.model("llama")
        if run is run_ultraedit:
            return record.changes(run(model, rows, **more)[0], "llama")
        own = malmen("llama", **{**settings, **more})
        tok = tiny.tokenizer("llama")
        return record.changes(
            apply_malmen_to_model(model, tok, rows, own, pseudo=PSEUDO)[0], "llama"
        )

    with_template, by_hand = chosen(EDITS, **hparams), chosen(wrapped)
    assert with_template and all(torch.equal(v, by_hand[n]) for n, v in with_template.items())
