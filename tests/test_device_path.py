"""From a query to the weights of its neuron nothing waits for the device or comes back from it.

No GPU is needed: tensors on the meta device have no values, so that whatever would read them on
the host (`item`, `tolist`, `bool`, `nonzero`, `cpu`) raises, and everything else runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.model.meg_model import MeGModel

# Of one length: of padded ones transformers asks whether their mask hides anything.
QUERIES = ["The capital of Atlantis is", "The river of Atlantis is", "The river of Genovia is"]


@pytest.fixture(params=["dit", "mlp", "bank"])
def far(request: pytest.FixtureRequest, make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    """A model on a device whose values cannot be read."""
    near = make_meg_model(generator=request.param, gate_state_weight=0.0)
    parts = (near.base, near.encoder, near.edition)
    near.hook.remove()
    base, encoder, edition = (copy.deepcopy(part).to("meta") for part in parts)
    return MeGModel(base, near.tokenizer, near.hparams, near.spec, encoder, edition)


@pytest.mark.parametrize(
    "read",
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.__bool__,
        torch.Tensor.nonzero,
        torch.Tensor.cpu,
    ],
)
def test_the_meta_device_forbids_reading(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(1, device="meta"))


def test_nothing_comes_back_from_the_device(far: MeGModel) -> None:
    with torch.no_grad():
        routing = far.route(QUERIES)
        assert routing.is_edit.shape == (3,) and routing.is_edit.is_meta
        neurons = far.generator.generate(far.anchors[routing.nearest])
        assert neurons.shape == (3, far.spec.size) and neurons.is_meta
        with NeuronHook(far.base, far.spec) as hook, hook.attached(neurons):
            ids = torch.ones(3, 5, dtype=torch.long, device="meta")
            assert far.base(input_ids=ids).logits.is_meta


def test_which_rows_are_edits_is_all_that_the_host_learns(
    far: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def decide(tensor: torch.Tensor) -> list[int]:
        shapes.append(tuple(tensor.shape))
        return [0, -1, 14]

    monkeypatch.setattr(torch.Tensor, "tolist", decide)
    far.edition.edits = far.edits * 3  # edit 14 exists
    neurons = far.neurons(far.route(QUERIES))
    assert shapes == [(3,)]
    assert neurons is not None and neurons.shape == (3, far.spec.size) and neurons.is_meta
