"""Every query gets the routing of its own best reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from meg_editor.lm.neuron import NeuronSpec
from meg_editor.requests.prompts import PromptReader, ReadPrompt
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router

EDITED = ["The capital of Atlantis is", "The river of Genovia is", "The language of Erewhon is"]


def read(*spans: str) -> ReadPrompt:
    return ReadPrompt(" ".join(spans), spans, spans)


@pytest.fixture(scope="module")
def router(tiny_encoder: TextEncoder, tiny_llama: Any, tiny_tokenizer: Any) -> Router:
    index = QueryIndex(tiny_encoder.encode(EDITED), [None] * len(EDITED))
    reader = PromptReader(tiny_tokenizer)
    states = HiddenStateReader(
        tiny_llama, tiny_tokenizer, NeuronSpec.from_model(tiny_llama, 1), reader
    )
    return Router(tiny_encoder, SimilarityGate(0.999), index, states)


def test_the_reading_with_the_highest_score_counts(router: Router) -> None:
    routing = router.route([read("Hello.", EDITED[2]), read(EDITED[0], "Hello."), read("Hello.")])
    assert routing.questions == [EDITED[2], EDITED[0], "Hello."]
    assert routing.is_edit.tolist() == [True, True, False]
    assert routing.nearest.tolist()[:2] == [2, 0]
    assert torch.equal(routing.score, routing.cosine)
    torch.testing.assert_close(routing.embeddings[0], router.index.anchors[2])


def test_a_query_without_readings_does_not_take_another_ones(router: Router) -> None:
    routing = router.route([ReadPrompt.of(text) for text in (EDITED[0], "", EDITED[1], "")])
    assert routing.questions == [EDITED[0], "", EDITED[1], ""]
    assert routing.is_edit.tolist() == [True, False, True, False]


def test_no_queries(router: Router) -> None:
    routing = router.route([])
    assert routing.questions == [] and routing.is_edit.shape == (0,)
