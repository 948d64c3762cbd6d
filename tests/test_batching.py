"""Continuous batching: each request is answered as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS
from families import FAMILIES, LAYER, build

from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.paged import PagedManager
from meg_editor.lm.sampling import Sampling
from meg_editor.model.meg_model import MeGModel

TOKENS = 6


@pytest.fixture(scope="module")
def edited(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)  # only an edited prompt itself is an edit
    return model


def ids_of(model: MeGModel, prompt: str) -> list[int]:
    return list(model.tokenizer(prompt)["input_ids"])


def alone(model: Any, ids: list[int], tokens: int = TOKENS) -> list[int]:
    batch = torch.tensor([ids])
    mask = torch.ones_like(batch)
    out = model.generate(input_ids=batch, attention_mask=mask, max_new_tokens=tokens)
    return out[0, len(ids) :].tolist()


def collected(manager: PagedManager, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while len(found) < count:
        output = manager.get_result(timeout=20)
        assert output is not None and output.error is None, output
        if output.is_finished():
            found[output.request_id] = output
    return found


def test_edits_and_neighbours_in_one_batch_answer_as_alone(edited):
    prompts = [ids_of(edited, prompt) for prompt in [*PROMPTS[:10], *OTHERS] * 3]
    found = edited.generate_batch(prompts, max_new_tokens=TOKENS)
    expected = [alone(edited, ids) for ids in prompts]
    assert [output.generated_tokens for output in found.values()] == expected
    changed = [
        alone(edited.base, ids) != answer for ids, answer in zip(prompts, expected, strict=True)
    ]
    assert sum(changed) >= 9  # the edits do something, and the others are left alone
    assert changed.count(False) >= 15


def test_requests_join_and_leave_at_any_time(edited):
    texts = [*PROMPTS[:8], *OTHERS]
    expected, answers = {}, {}

    def take() -> None:
        output = manager.get_result(timeout=20)
        assert output is not None and output.error is None
        if output.is_finished():
            answers[output.request_id] = output.generated_tokens

    with edited.continuous_batching_context_manager() as manager:
        for n, text in enumerate(texts):
            ids = ids_of(edited, text)
            name = manager.add_request(ids, max_new_tokens=3 + n, streaming=True)
            expected[name] = (ids, 3 + n)
            gone = manager.add_request(ids, f"gone {n}", max_new_tokens=100)
            take()  # a step, or more
            manager.cancel_request(gone)
        while len(expected.keys() & answers.keys()) < len(expected):
            take()
        assert not manager._riders  # nothing is kept of what is over
    for name, (ids, tokens) in expected.items():
        assert answers[name] == alone(edited, ids, tokens)


def test_the_same_beginning_is_not_shared_with_an_edit(edited):
    """A page of keys and values that an edit changed must not serve another request."""
    hook, size = edited.hook, edited.spec.size
    ids = ids_of(edited, " ".join([*PROMPTS[:6], *OTHERS]))[:90]
    neuron = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 3
    manager = PagedManager(edited.base, hook, edited.base.generation_config)
    manager.start()
    neurons = [None, neuron, None, -neuron, None]
    for row, each in enumerate(neurons):
        manager.add_request(ids, str(row), max_new_tokens=TOKENS, neuron=each)
        if row == 1:
            first = collected(manager, 2)
    found = {**first, **collected(manager, 3)}
    manager.stop()
    for row, each in enumerate(neurons):
        with hook.attached(None if each is None else each[None]):
            assert found[str(row)].generated_tokens == alone(edited.base, ids)


def test_a_long_prompt_is_read_in_parts(edited):
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    config = ContinuousBatchingConfig(page_size=8, num_blocks=64, max_batch_tokens=16)
    prompts = [ids_of(edited, prompt) for prompt in (PROMPTS[0], OTHERS[0])]
    found = edited.generate_batch(
        prompts * 6, max_new_tokens=TOKENS, continuous_batching_config=config
    )
    expected = [alone(edited, ids) for ids in prompts] * 6
    assert [output.generated_tokens for output in found.values()] == expected


def test_a_seed_gives_the_same_answer_in_any_company(edited):
    ids = ids_of(edited, PROMPTS[0])
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=7)

    def answer(company: int) -> list[int]:
        manager = PagedManager(edited.base, edited.hook, edited.base.generation_config)
        manager.start()
        for n in range(company):
            manager.add_request(
                ids_of(edited, PROMPTS[n]), f"other {n}", max_new_tokens=TOKENS,
                chooser=Sampling(temperature=1.0, seed=n).chooser(),
            )  # fmt: skip
        manager.add_request(ids, "it", max_new_tokens=TOKENS, chooser=sampling.chooser())
        found = collected(manager, company + 1)["it"]
        manager.stop()
        return found.generated_tokens

    assert answer(0) == answer(5) == answer(0)


def test_sampling_is_that_of_the_warped_distribution():
    logits = torch.tensor([3.0, 2.0, 1.0, -1.0])
    chooser = Sampling(temperature=2.0, top_p=0.9, seed=0).chooser()
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[chooser(logits).token] += 1
    probabilities = (logits / 2).softmax(-1)
    kept = torch.where(torch.arange(4) < 3, probabilities, 0)  # 0.51 + 0.31 + 0.19 > 0.9
    assert torch.allclose(counts / 4000, kept / kept.sum(), atol=0.03)


def test_log_probabilities_are_those_of_the_model(edited):
    ids = ids_of(edited, PROMPTS[0])
    neuron = edited.decide([PROMPTS[0]])
    manager = PagedManager(edited.base, edited.hook, edited.base.generation_config)
    manager.start()
    chooser = Sampling(logprobs=3).chooser()
    manager.add_request(ids, "it", max_new_tokens=4, neuron=neuron[0], chooser=chooser)
    output = collected(manager, 1)["it"]
    manager.stop()
    whole = torch.tensor([[*ids, *output.generated_tokens]])
    with edited.hook.attached(neuron):
        expected = edited.base(input_ids=whole).logits[0].log_softmax(-1)
    for place, (token, chosen) in enumerate(
        zip(output.generated_tokens, output.chosen, strict=True)
    ):
        row = expected[len(ids) - 1 + place]
        assert chosen.token == token == int(row.argmax())
        assert chosen.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [i for i, _ in chosen.top] == row.topk(3).indices.tolist()


@pytest.mark.parametrize(
    "changes", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}]
)
def test_impossible_sampling_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Sampling(**changes)


def test_routing_while_decoding_is_refused(make_meg_model):
    model = make_meg_model("bank")
    model.hparams = model.hparams.changed(routing="decoding")
    with pytest.raises(ValueError, match="routing=prompt"):
        model.generate_batch([ids_of(model, PROMPTS[0])])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_families_with_a_neuron_per_token(family, tiny_tokenizer):
    """Packed with others, each with its own neuron or none: as in a batch of rows."""
    model = build(family, tiny_tokenizer)
    spec = NeuronSpec.from_model(model, LAYER)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 60, (4, 7), generator=generator)
    neurons = torch.randn(4, spec.size, generator=generator)
    neurons[2] = 0

    with NeuronHook(model, spec) as hook:
        plain = packed(model, hook, prompts, [None] * 4)
        if plain != rows_of(model, prompts):
            pytest.skip(f"transformers does not batch {family.name} continuously")
        with hook.attached(neurons):
            expected = rows_of(model, prompts)
        found = packed(model, hook, prompts, [n if n.any() else None for n in neurons])
    assert found == expected != plain
    assert found[2] == plain[2]


def rows_of(model: Any, prompts: torch.Tensor) -> list[list[int]]:
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    rows = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    return rows[:, prompts.shape[1] :].tolist()


def packed(model: Any, hook: NeuronHook, prompts: torch.Tensor, neurons: list[Any]) -> Any:
    """Answers of the engine; None where transformers' own parts fail."""
    try:
        manager = PagedManager(model, hook, model.generation_config)
    except Exception:
        return None
    manager.start()
    for row, (ids, neuron) in enumerate(zip(prompts.tolist(), neurons, strict=True)):
        manager.add_request(ids, str(row), max_new_tokens=3, eos_token_id=-1, neuron=neuron)
    outputs = [manager.get_result(timeout=10) for _ in neurons]
    manager.stop(hard_stop=True)
    if any(output is None or output.error for output in outputs):
        return None
    found = {output.request_id: output.generated_tokens for output in outputs}
    return [found[str(row)] for row in range(len(neurons))]


def test_the_unedited_model_is_the_same_to_other_threads(edited):
    """transformers writes `is_causal` to the config that all threads share."""
    ids = torch.tensor([ids_of(edited, PROMPTS[0])])
    with torch.no_grad():
        before = edited.base(input_ids=ids, use_cache=False).logits
        with edited.continuous_batching_context_manager() as manager:
            for _ in range(8):
                manager.add_request(ids[0].tolist(), max_new_tokens=60)
            for _ in range(100):
                assert torch.equal(edited.base(input_ids=ids, use_cache=False).logits, before)
        assert torch.equal(edited.base(input_ids=ids, use_cache=False).logits, before)
