"""What somebody did is not lost: by a save, a task beside, a demo, a setting set in place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PROMPTS
from live_facts import facts, ids, listed, load
from synthetic_neurons import Collector

from meg_editor.cli.demo import run_demo
from meg_editor.edits import live
from meg_editor.model.appending import OtherWriterError
from meg_editor.model.meg_model import MeGModel
from meg_editor.routing.verifier import Verifier


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    monkeypatch.setattr(live, "collect", collector := Collector())
    return collector


@pytest.fixture
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)
    return model


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
        with pytest.raises(RuntimeError, match="another asyncio task"):
            model.add(facts(8))

    async def both() -> None:
        await asyncio.gather(transaction(), beside())
        with model.transaction(), model.transaction():
            model.add(facts(8))  # of one task any number

    before = ids(model)
    asyncio.run(both())
    assert ids(model) - before == {edit.id for edit in model.edits[-1:]}


def test_a_demo_does_not_overwrite_edits_that_came_later(model: MeGModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    model.remove(PROMPTS[0])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="changed 1 times since they were fitted"):
        run_demo(2, out=tmp_path, say=lambda _: None)
    assert listed(tmp_path / "model") == ids(model)
