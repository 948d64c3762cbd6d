"""TextEncoder: pooling, and the objectives of tuning against formulas."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS
from transformers import BertConfig, BertForPreTraining, BertModel

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.encoder_stage import load_encoder
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder, _infonce, load_network, tune_encoder
from meg_editor.routing.pooling import own_pooling, pool

FACTS = [
    EditRequest(prompt, "x", rephrases=(f"Say: {prompt}",), locality_prompts=(other,))
    for prompt, other in zip(PROMPTS[:5], OTHERS, strict=True)
]


@pytest.fixture
def encoder(tiny_encoder: TextEncoder) -> TextEncoder:
    return copy.deepcopy(tiny_encoder)


def states(encoder: TextEncoder, text: str) -> torch.Tensor:
    batch = encoder.tokenizer(text, return_tensors="pt")
    return encoder.model(**batch).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_ignores_padding(encoder: TextEncoder, pooling: str) -> None:
    encoder.pooling = pooling  # type: ignore[assignment]
    embeddings = encoder.encode([*PROMPTS, *OTHERS, "a"])
    for text, embedding in zip([*PROMPTS, *OTHERS, "a"], embeddings, strict=True):
        tokens = states(encoder, text)
        expected = tokens[0] if pooling == "cls" else tokens.mean(0)
        assert torch.allclose(embedding, expected / expected.norm(), atol=1e-5)


def test_a_long_text_keeps_its_end(encoder: TextEncoder) -> None:
    question = PROMPTS[0]
    first, second = ("word " * 300 + question, "other " * 300 + question)
    assert encoder.encode([first, second]).shape == (2, encoder.dimension)
    assert encoder.encode([]).shape == (0, encoder.dimension)


@pytest.mark.parametrize("hard", [False, True])
def test_infonce_is_equation_5(encoder: TextEncoder, hard: bool) -> None:
    loss = _infonce(encoder, FACTS, random.Random(0), hard)
    queries = encoder.encode([fact.rephrases[0] for fact in FACTS])
    keys = encoder.encode([fact.prompt for fact in FACTS])
    negatives = encoder.encode([fact.locality_prompts[0] for fact in FACTS]) if hard else keys[:0]
    total = 0.0
    for row, query in enumerate(queries):
        weights = [math.exp(float(query @ key) / 0.05) for key in [*keys, *negatives]]
        total -= math.log(weights[row] / sum(weights))
    assert float(loss) == pytest.approx(total / len(FACTS), rel=1e-4)


def test_tuning_lowers_the_loss_and_touches_the_last_layer_only(encoder: TextEncoder) -> None:
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    losses = tune_encoder(encoder, FACTS, steps=60, lr=1e-2, tuned_layers="last")
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    changed = {n for n, v in encoder.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and all("layer.1." in name for name in changed)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_mse_draws_paraphrases_to_the_untuned_originals(encoder: TextEncoder) -> None:
    originals = encoder.encode([fact.prompt for fact in FACTS])

    def distance() -> float:
        queries = encoder.encode([fact.rephrases[0] for fact in FACTS])
        return float((queries - originals).square().sum(-1).mean())

    before = distance()
    losses = tune_encoder(encoder, FACTS, objective="mse", steps=60, lr=1e-2, tuned_layers="all")
    assert losses[0] == pytest.approx(before, rel=0.05)
    assert distance() < 0.3 * before


def test_frozen_changes_nothing_and_the_same_seed_gives_the_same(encoder: TextEncoder) -> None:
    before = encoder.encode(PROMPTS)
    assert tune_encoder(encoder, FACTS, objective="frozen") == []
    assert torch.equal(encoder.encode(PROMPTS), before)
    other = copy.deepcopy(encoder)
    for each in (encoder, other):
        tune_encoder(each, FACTS, steps=5, seed=4)
    assert torch.equal(encoder.encode(PROMPTS), other.encode(PROMPTS))


def test_bad_input_leaves_the_encoder_as_it_was(encoder: TextEncoder) -> None:
    before = encoder.encode(PROMPTS)
    with pytest.raises(ValueError, match=r"rephrases, got 0 of 2.*frozen"):
        tune_encoder(encoder, [EditRequest("a", "b"), EditRequest("c", "d")])
    with pytest.raises(FloatingPointError, match="encoder_lr"):
        tune_encoder(encoder, FACTS, steps=30, lr=float("inf"), tuned_layers="all")
    assert torch.equal(encoder.encode(PROMPTS), before)


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (None, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
    ],
)
def test_a_sentence_encoder_is_pooled_as_it_was_trained(
    tmp_path: Path, settings: dict[str, bool] | None, pooling: str
) -> None:
    TextEncoder.from_pretrained(resolve_model_name("meg_editor:bert-reference")).save_pretrained(
        tmp_path
    )
    if settings is not None:
        (tmp_path / "modules.json").write_text(json.dumps(MODULES))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert TextEncoder.from_pretrained(tmp_path).pooling == pooling
    assert TextEncoder.from_pretrained(tmp_path, "cls").pooling == "cls"


MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def test_a_checkpoint_with_pooler_and_heads_loads_without_a_report(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertForPreTraining(BertConfig(**sizes, intermediate_size=8)).save_pretrained(tmp_path)
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        network = load_network(tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert type(network) is BertModel and network.pooler is None and not said


def test_padding_is_put_behind_texts_whatever_the_tokenizer_says(
    tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    """In front of them it would shift BERT's positions; and a padding token may be missing."""
    encoder = copy.deepcopy(tiny_encoder)
    encoder.tokenizer.padding_side = "left"
    encoder.tokenizer.pad_token = None
    encoder.save_pretrained(tmp_path)
    texts = ["Who wrote the book?", "b", "My cat sat on a river"]
    loaded = TextEncoder.from_pretrained(tmp_path).encode(texts)
    assert torch.allclose(loaded, tiny_encoder.encode(texts), atol=1e-5)


def test_a_module_which_changes_embeddings_is_refused(tmp_path: Path) -> None:
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([MODULES[0], dense]))
    with pytest.raises(ValueError, match="Dense is not supported.*encoder_name"):
        own_pooling(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("1_Pooling/config.json", None, "is not there; download the encoder again"),
        ("1_Pooling/config.json", "{", "is not JSON: .*download the encoder again"),
        ("1_Pooling/config.json", "[1]", "expected a JSON object, got"),
        ("1_Pooling/config.json", "{}", "pooling: expected some of cls, .*got ''"),
        ("1_Pooling/config.json", '{"pooling_mode": 5}', "pooling: expected some of cls"),
        ("modules.json", "[", "is not JSON: .*download the encoder again"),
        ("modules.json", "{}", "expected a list of modules with a type and a path, got {}"),
        ("modules.json", '[{"type": "Pooling"}]', "expected a list of modules with a type and"),
    ],
)
def test_an_encoder_of_which_a_part_is_missing_or_damaged_is_not_pooled_otherwise(
    tmp_path: Path, file: str, content: str | None, problem: str
) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert own_pooling(tmp_path) == "mean"
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{tmp_path / file}.*{problem}"):
        own_pooling(tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_poolings_are_loops_over_the_tokens(side: str) -> None:
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    mask = mask.flip(1) if side == "left" else mask
    for row in range(2):
        tokens = [states[row, i] for i in range(5) if mask[row, i]]
        places = [i + 1.0 for i in range(5) if mask[row, i]]
        weighted = sum(p * t for p, t in zip(places, tokens, strict=True)) / sum(places)
        expected = {
            "cls": tokens[0],
            "lasttoken": tokens[-1],
            "mean": sum(tokens) / len(tokens),
            "mean_sqrt_len_tokens": sum(tokens) / math.sqrt(len(tokens)),
            "max": torch.tensor([max(float(t[i]) for t in tokens) for i in range(3)]),
            "weightedmean": weighted,
        }
        for mode, embedding in expected.items():
            torch.testing.assert_close(pool(states, mask, mode)[row], embedding)
        both = torch.cat([expected["cls"], expected["mean"]])
        torch.testing.assert_close(pool(states, mask, "cls+mean")[row], both)


@pytest.mark.parametrize("name", ["", "someone/else", "meg_editor:llama-reference"])
def test_the_reference_encoder_beside_another_model_is_said(
    tiny_llama: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """An empty name: a model built in memory, which is what `model_name` says."""
    model = copy.copy(tiny_llama)
    model.config = copy.deepcopy(tiny_llama.config)
    model.config.name_or_path = name
    load_encoder(MeGHyperParams.preset("default"), model)
    warned = [record.getMessage() for record in caplog.records if "encoder_name" in record.msg]
    assert len(warned) == (name == "someone/else")
    assert all("someone/else" in text and "MeGHyperParams(" in text for text in warned)
