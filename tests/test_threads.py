"""Many threads at one model: answers, errors, cancelled streams, caches, copies, files."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from campaigns.threads import Campaign, entries, hook_count
from conftest import OTHERS, PROMPTS, at_once

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.generators.cache import NeuronCache
from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.loading import load_model
from meg_editor.model.meg_model import MeGModel

MIXED = [text for pair in zip(PROMPTS[:5], OTHERS, strict=True) for text in pair]
TOKENS = 4


@pytest.fixture
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


def while_answering(model: MeGModel, work: Callable[[], None], threads: int = 3) -> None:
    """Run `work` while other threads ask for answers, which must be those they get alone."""
    alone = {text: model.answer(text, TOKENS) for text in MIXED}
    done = threading.Event()

    def turn(number: int) -> None:
        if number == 0:
            try:
                work()
            finally:
                done.set()
        while not done.is_set():
            for text in MIXED[number:] + MIXED[:number]:
                assert model.answer(text, TOKENS) == alone[text]

    at_once(1 + threads, turn)
    assert {text: model.answer(text, TOKENS) for text in MIXED} == alone


def test_a_short_campaign(model: MeGModel) -> None:
    """`python tests/campaigns/threads.py` is the long one."""
    result = Campaign(model, MIXED).run(threads=8, each=25)
    assert not result.failures
    assert result.tried >= 8 * 25


# ----------------------------------------------------------------------------- first uses


def test_threads_may_be_the_first_to_ask(model: MeGModel) -> None:
    expected = [model.answer(text, TOKENS) for text in MIXED]
    answers: dict[tuple[int, int], list[str]] = {}
    for turn in range(5):
        fresh = copy.deepcopy(model)

        def ask(number: int, turn: int = turn, fresh: MeGModel = fresh) -> None:
            answers[turn, number] = fresh.answer(MIXED[number], TOKENS)

        at_once(8, ask)
    for (_, number), answer in answers.items():
        assert answer == expected[number]


def test_threads_load_one_folder_and_ask_at_once(model: MeGModel, tmp_path: Path) -> None:
    expected = [model.answer(text, TOKENS) for text in MIXED]
    model.save_pretrained(tmp_path / "edits")
    answers: dict[int, list[str]] = {}

    def work(number: int) -> None:
        if number % 2:
            load_model(MeGHyperParams.preset("default", device="cpu"))
        base = copy.deepcopy(model.base)
        loaded = MeGModel.from_pretrained(tmp_path / "edits", base=base)
        answers[number] = loaded.answer(MIXED[number], TOKENS)

    at_once(8, work)
    assert [answers[n] for n in range(8)] == expected[:8]
    # What transformers patches while it loads is as it was.
    base, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
    assert not base.get_output_embeddings().weight.is_meta
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=copy.deepcopy(model.base))
    at_once(8, lambda n: answers.update({n: loaded.answer(MIXED[n], TOKENS)}))
    assert [answers[n] for n in range(8)] == expected[:8]


# ----------------------------------------------------------------- copies, files, changes


def test_copies_are_made_while_others_ask(model: MeGModel) -> None:
    expected = [model.answer(text, TOKENS) for text in MIXED[:2]]
    hooks = hook_count(model)
    copies: list[MeGModel] = []

    def work() -> None:
        copies.extend(copy.deepcopy(model) for _ in range(8))

    while_answering(model, work)
    for twin in copies:
        assert [twin.answer(text, TOKENS) for text in MIXED[:2]] == expected
        assert hook_count(twin) == hooks


def test_a_base_is_copied_and_pickled_while_others_ask(model: MeGModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    expected = model.base(input_ids=ids).logits

    def work() -> None:
        for _ in range(8):
            twins = copy.deepcopy(model.base), pickle.loads(pickle.dumps(model.base))
            for twin in twins:
                assert torch.equal(twin(input_ids=ids).logits, expected)
                assert hook_count(twin) == 0

    while_answering(model, work)


def test_edits_are_saved_while_others_ask(model: MeGModel, tmp_path: Path) -> None:
    def work() -> None:
        for turn in range(4):
            model.save_pretrained(tmp_path / f"edits {turn % 2}")

    while_answering(model, work)
    loaded = MeGModel.from_pretrained(tmp_path / "edits 0", base=model.base)
    assert loaded.answer(MIXED, TOKENS) == model.answer(MIXED, TOKENS)


def test_neurons_are_read_while_others_ask(model: MeGModel) -> None:
    expected = model.generated_neurons()

    def work() -> None:
        for _ in range(50):
            assert torch.equal(model.generated_neurons(rows=2), expected)

    while_answering(model, work)


# ----------------------------------------------------------------------- the neuron cache


@pytest.mark.parametrize("generator", ["bank", "dit"])
def test_a_small_cache_of_neurons_under_contention(
    make_meg_model: Callable[..., MeGModel], generator: str
) -> None:
    model = make_meg_model(generator, runtime=RuntimeConfig(neuron_cache=2))
    routing = [model.route([text, other]) for text in PROMPTS[:5] for other in MIXED[:4]]
    expected = [model.neurons(each) for each in routing]

    def work(number: int) -> None:
        for turn in range(60):
            which = (7 * number + turn) % len(routing)
            neurons = model.neurons(routing[which])
            # Alone and in a batch some processors round differently.
            assert neurons is not None
            torch.testing.assert_close(neurons, expected[which], rtol=1e-4, atol=1e-4)
            if turn % 10 == number:
                model.neuron_cache.clear()

    at_once(8, work)
    assert len(model.neuron_cache) <= 2


def test_a_cache_that_was_cleared_stores_nothing_of_before() -> None:
    """The generator changes while neurons are generated: what it gave before is out of date."""
    cache = NeuronCache(4)

    def generate(edits: list[int]) -> torch.Tensor:
        cache.clear()
        return torch.zeros(len(edits), 2)

    cache.get([1], generate)
    assert len(cache) == 0


# ------------------------------------------------------------------------- what is left


def test_blocks_left_in_another_thread_do_not_pile_up() -> None:
    """A server opens a request in its event loop and closes it in a worker, all day long."""
    owner = object()

    def request() -> Iterator[None]:
        with in_effect(owner, 1):
            yield

    def depth() -> int:
        from meg_editor.lm.in_effect import _INNERMOST

        entry, count = _INNERMOST.get(), 0
        while entry is not None:
            entry, count = entry.parent, count + 1
        return count

    for _ in range(20):
        suspended = request()
        next(suspended)
        closer = threading.Thread(target=suspended.close)  # type: ignore[attr-defined]
        closer.start()
        closer.join()
        assert value_of(owner) is None and depth() <= 1
    assert not entries()
