"""Bases which are quantised, offloaded or in half precision: edited, and bit for bit untouched."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers as tf
from conftest import OTHERS, PROMPTS, build_tiny_llama

from meg_editor.baselines.core.weights import check_writable
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.baselines.memit import MEMITHyperParams, apply_memit_to_model
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.working_copy import working_copy
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

# Of eight vocabulary entries of the tiny tokenizer.
TARGETS = ["river", "language", "capital", "river", "language", "capital", "river", "language"]
FACTS = [EditRequest(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=False)]
SETTINGS = MeGHyperParams(
    layers=[1],
    encoder_steps=0,
    gate_threshold=0.99,
    gate_name_weight=0.0,
    gate_state_weight=0.0,
    collection_contexts=1,
    collection_loss_threshold=0.3,
    collection_optimizer="scaled",
    generator="bank",
)
TUNING = [
    EditRequest(prompt, "x", rephrases=(f"Say: {prompt}",), locality_prompts=(other,))
    for prompt, other in zip(PROMPTS[8:13], OTHERS, strict=True)
]


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def nf4(_: Path) -> dict[str, Any]:
    needs("bitsandbytes")
    config = tf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return {"quantization_config": config, "device_map": "cpu"}


def int8(_: Path) -> dict[str, Any]:
    needs("bitsandbytes")
    return {"quantization_config": tf.BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}


def torchao_int8(_: Path) -> dict[str, Any]:
    needs("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return {
        "quantization_config": tf.TorchAoConfig(Int8WeightOnlyConfig()),
        "device_map": "cpu",
        "dtype": torch.float32,
    }


def offloaded(folder: Path) -> dict[str, Any]:
    """The edited block and the output layer on disk."""
    here = ["embed_tokens", "rotary_emb", "layers.0", "layers.2", "norm"]
    places = {f"model.{part}": "cpu" for part in here}
    places |= {"model.layers.1": "disk", "lm_head": "disk"}
    return {"device_map": places, "offload_folder": folder / "disk", "dtype": torch.float32}


def on_disk(folder: Path) -> dict[str, Any]:
    """All of it: `model.device` is meta."""
    return {
        "device_map": {"": "disk"},
        "offload_folder": folder / "disk",
        "dtype": torch.float32,
    }


def bfloat16(_: Path) -> dict[str, Any]:
    return {"dtype": torch.bfloat16}


def float16(_: Path) -> dict[str, Any]:
    return {"dtype": torch.float16}


KINDS: list[Callable[[Path], dict[str, Any]]] = [
    nf4, int8, torchao_int8, offloaded, on_disk, bfloat16, float16,
]  # fmt: skip
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    """Without an end of text: answers of one token are what random weights can be taught."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    return tokenizer


@pytest.fixture
def load(tiny_tokenizer: Any, tmp_path: Path) -> Any:
    config = copy.deepcopy(build_tiny_llama(tiny_tokenizer).config)
    # Kernels for nf4 take blocks of 64.
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    config.eos_token_id = None
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")

    def load(kind: Callable[[Path], dict[str, Any]]) -> Any:
        options = kind(tmp_path)
        base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
        return base.eval().requires_grad_(False)

    return load


@all_kinds
def test_eight_facts_are_learned_on_an_untouched_base(
    kind: Any, load: Any, tokenizer: Any, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    base = load(kind)
    before = fingerprint(base)
    prompts = [fact.prompt for fact in FACTS]
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
    edited, report = fit(base, tokenizer, FACTS, SETTINGS, **tuning)
    assert report.collection is not None
    assert report.collection.success.all()
    answers = edited.answer(prompts, 1)
    assert answers == TARGETS
    assert fingerprint(base) == before
    edited.save_pretrained(tmp_path / "edits")
    again = load(kind)
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=again, tokenizer=tokenizer)
    assert loaded.answer(prompts, 1) == answers
    assert loaded.answer(OTHERS, 3) == edited.answer(OTHERS, 3)


def offload_to_cpu(model: Any, _: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def offload_to_disk(model: Any, folder: Path) -> Any:
    return accelerate.disk_offload(model, folder / "disk", execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk])
def test_a_model_whose_embeddings_are_offloaded_is_edited_as_in_memory(
    offload: Any, load: Any, tokenizer: Any, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    """accelerate leaves its weights on meta between two passes, and so is `model.device`."""
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
    prompts = [*(fact.prompt for fact in FACTS), *OTHERS]
    results = []
    for place in (lambda model, _: model, offload):
        base = place(load(lambda _: {"dtype": torch.float32}), tmp_path)
        edited, _ = fit(base, tokenizer, FACTS[:4], SETTINGS, **tuning)
        edited.add(FACTS[4:])
        inputs = tokenizer(PROMPTS[0], return_tensors="pt")
        generated = edited.generate(**inputs, max_new_tokens=3).tolist()
        assert edited.index.anchors.device.type == "cpu"
        results.append((edited.answer(prompts, 3), generated, edited.fork().answer(prompts, 3)))
    assert base.device.type == "meta"
    assert results[1] == results[0]
    answers = edited.answer(prompts, 1)
    assert answers[: len(FACTS)] == TARGETS
    edited.save_pretrained(tmp_path / "edits", save_base=True)
    loaded = MeGModel.from_pretrained(tmp_path / "edits", device="cpu", tokenizer=tokenizer)
    assert loaded.answer(prompts, 1) == answers
    assert fingerprint(loaded.base) == fingerprint(base)


@all_kinds
def test_what_cannot_be_copied_is_worked_on_itself(kind: Any, load: Any) -> None:
    model = load(kind)
    copies = kind in (bfloat16, float16)
    for half in (None, True):
        assert (working_copy(model, half) is model) == (not copies)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(nf4, "quantised"), (int8, "quantised"), (torchao_int8, "quantised"), (offloaded, "offload")],
    ids=["nf4", "int8", "torchao_int8", "offloaded"],
)
def test_methods_which_write_weights_refuse_by_name(
    kind: Any, problem: str, load: Any, tokenizer: Any
) -> None:
    """Before they compute anything."""
    model, message = load(kind), rf"^model.layers.1.mlp.\w+_proj.weight is {problem}"
    rows = [{"prompt": PROMPTS[0], "subject": "Atlantis", "target_new": "river"}]
    with pytest.raises(ValueError, match=message):
        apply_ft_to_model(model, tokenizer, rows, FTHyperParams(layers=[1]))
    with pytest.raises(ValueError, match=message):
        apply_memit_to_model(model, tokenizer, rows, MEMITHyperParams(layers=[1]))


def test_a_layer_which_two_blocks_share_is_refused_by_name(tiny_tokenizer: Any) -> None:
    model = build_tiny_llama(tiny_tokenizer)
    layers = model.model.layers
    layers[2].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.weight is tied to .*layers.2"):
        check_writable(model, ["model.layers.1.mlp.down_proj.weight"])
    check_writable(model, ["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.parametrize("kind", [offloaded, on_disk], ids=["offloaded", "on_disk"])
def test_offloaded_weights_have_the_fingerprint_of_those_in_memory(kind: Any, load: Any) -> None:
    assert fingerprint(load(kind)) == fingerprint(load(lambda _: {"dtype": torch.float32}))


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk])
def test_tied_weights_count_once_in_memory_and_offloaded(
    offload: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Edits of an offloaded model are loaded with the same model in memory."""
    config = copy.deepcopy(build_tiny_llama(tiny_tokenizer).config)
    config.tie_word_embeddings = True
    model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    in_memory = fingerprint(model)
    assert "lm_head.weight" not in in_memory
    assert fingerprint(offload(model, tmp_path)) == in_memory
