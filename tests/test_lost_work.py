"""What somebody did is not lost: by a save, a task beside, a demo, a setting set in place."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS
from live_facts import facts, ids, listed, load

from meg_editor.baselines.core import weights
from meg_editor.cli.demo import run_demo
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.appending import OtherWriterError
from meg_editor.requests.request import EditRequest
from meg_editor.routing.verifier import Verifier

pytestmark = pytest.mark.usefixtures("collector")


@pytest.fixture
def model(exact_model: MeGModel) -> MeGModel:
    return exact_model


def test_a_copy_elsewhere_does_not_make_a_folder_ones_own(model: MeGModel, tmp_path: Path) -> None:
    """After a save to another folder the next one overwrote what the other writer had saved."""
    folder = tmp_path / "edits"
    model.save_pretrained(folder)
    first, second = load(model, folder), load(model, folder)
    second.add(facts(8))
    second.save_pretrained(folder)
    first.add(facts(9))
    first.save_pretrained(tmp_path / "copy")
    with pytest.raises(OtherWriterError):
        first.save_pretrained(folder)
    assert listed(folder) == ids(second) and listed(tmp_path / "copy") == ids(first)


def test_two_folders_of_one_model_both_get_its_changes(model: MeGModel, tmp_path: Path) -> None:
    for count in (8, 9):
        model.add(facts(count))
        for name in ("a", "b"):
            model.save_pretrained(tmp_path / name)
            assert listed(tmp_path / name) == ids(model)
            assert load(model, tmp_path / name).history()[-1].number == count - 7
    model.compact()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        assert load(model, tmp_path / name).history() == ()


def test_what_is_set_in_place_is_saved(model: MeGModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    model.hparams.seed = 7
    model.save_pretrained(tmp_path)
    loaded = load(model, tmp_path)
    assert loaded.hparams.seed == 7
    loaded.gate.threshold.fill_(0.25)
    loaded.save_pretrained(tmp_path)
    assert float(load(model, tmp_path).gate.threshold) == 0.25


def test_a_learned_gate_is_saved_with_the_threshold_in_force(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path
) -> None:
    """A change makes another gate of it, and the first one was written."""
    model = make_meg_model("bank", gate="familiarity")
    model.add(facts(8))
    model.gate.threshold.fill_(-0.7)
    model.save_pretrained(tmp_path)
    assert float(load(model, tmp_path).gate.threshold) == pytest.approx(-0.7)


def test_former_histories_are_let_go(model: MeGModel, tmp_path: Path) -> None:
    """Each folder that was saved to held the neurons of its time."""
    model.save_pretrained(tmp_path)
    former = weakref.ref(model._history)
    model.add(facts(8))
    model.compact()
    assert former() is None


def test_a_loaded_model_answers_whatever_mode_its_base_was_in(
    model: MeGModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    model.base.train()
    assert not load(model, tmp_path).base.training


def test_a_fork_has_settings_of_its_own(model: MeGModel) -> None:
    model.fork().hparams.seed = 7
    assert model.hparams.seed == 0


def test_a_fork_leaves_the_base_in_its_mode(model: MeGModel) -> None:
    """The dropout of a training loop ended with it."""
    model.train()
    fork = model.fork()
    assert model.base.training and fork.training and not fork.encoder.training
    assert not model.eval().fork().base.training


def test_limits_of_a_verifier_are_those_in_force(model: MeGModel) -> None:
    from meg_editor.lm.reference import reference_encoder_path
    from meg_editor.routing.encoder import TextEncoder

    encoder = TextEncoder.from_pretrained(reference_encoder_path())
    verifier = Verifier.shipped(encoder)
    assert verifier is not None and Verifier(encoder, verifier.tensors).limits == verifier.limits
    verifier.threshold, verifier.system = 0.75, None
    again = Verifier(encoder, verifier.tensors)
    assert again.threshold == 0.75 and again.system is None
    assert again.tensors.keys() == verifier.tensors.keys()


def test_another_task_does_not_change_edits_amid_a_transaction(model: MeGModel) -> None:
    """Its change was confirmed, and rolled back with the transaction of the first."""

    async def transaction() -> None:
        with suppress(OSError), model.transaction():
            model.remove(PROMPTS[0])
            await asyncio.sleep(0.02)
            raise OSError("nobody was notified")

    async def beside() -> None:
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="another task of this thread"):
            model.add(facts(8))

    async def added(row: int) -> None:
        model.add(facts(row))

    async def both() -> None:
        await asyncio.gather(transaction(), beside())
        with model.transaction(), model.transaction():  # of one task any number
            await asyncio.gather(added(8), asyncio.wait_for(added(9), 1))  # and those it begins

    before = ids(model)
    asyncio.run(both())
    assert ids(model) - before == {edit.id for edit in model.edits[-2:]}
    with model.transaction():
        asyncio.run(added(10))
    assert len(ids(model) - before) == 3


def test_a_demo_does_not_overwrite_edits_that_came_later(model: MeGModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    model.remove(PROMPTS[0])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="changed 1 times since they were fitted"):
        run_demo(2, out=tmp_path, say=lambda _: None)
    assert listed(tmp_path / "model") == ids(model)


def test_a_thread_that_a_transaction_waits_for_is_refused(model: MeGModel) -> None:
    """Each waited for the other, for ever."""

    async def transaction() -> None:
        with model.transaction():
            with pytest.raises(RuntimeError, match="call it there, or give the whole transaction"):
                await asyncio.to_thread(model.remove, PROMPTS[0])
            model.remove(PROMPTS[1])

    asyncio.run(asyncio.wait_for(transaction(), timeout=30))
    assert len(model.edits) == 5


def test_weights_that_cannot_all_be_written_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first layers had changed when memory ran out, and nobody had the old ones."""
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    layers.get_input_embeddings = layers.get_output_embeddings = lambda: None
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    updates = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}
    edit = EditRequest("The capital of Peru is", "Lima")

    def second_fails(parameter: torch.Tensor, update: torch.Tensor) -> None:
        if parameter is layers[1].weight:
            raise MemoryError
        add(parameter, update)

    add = weights.add
    monkeypatch.setattr(weights, "add", second_fails)
    with pytest.raises(MemoryError):
        weights.edit_weights(layers, [edit], lambda *_: updates)
    monkeypatch.undo()
    layers.half()
    updates["1.weight"] *= 1e6  # finite, but not as float16
    with pytest.raises(FloatingPointError, match="the update of 1.weight is not finite; lower"):
        weights.edit_weights(layers, [edit], lambda *_: updates)
    for name, value in layers.state_dict().items():
        assert torch.equal(value, before[name].half())
