"""hparams/<METHOD>: every file loads, and names layers and modules which its model really has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from conftest import OTHERS, PROMPTS
from families import FAMILIES, build
from test_hparams_files import ARCHITECTURES, _model

from meg_editor.baselines.core.settings import (
    BaselineHyperParams,
    LayerHyperParams,
    LocateHyperParams,
)
from meg_editor.baselines.core.token_gradients import TokenGradientHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark import resolve_method
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.settings import HParamsError
from meg_editor.lm.answers import greedy_answers
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

FOLDER = Path(__file__).parents[1] / "hparams"
METHODS = {
    "AlphaEdit": "alphaedit",
    "FT": "ft",
    "HOREN": "horen",
    "LocFT": "locft",
    "MALMEN": "malmen",
    "MEMIT": "memit",
    "NeuralDB": "neuraldb",
    "PMET": "pmet",
    "RLEdit": "rledit",
    "Retrieval": "retrieval",
    "SCEN": "scen",
    "UltraEdit": "ultraedit",
}
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/*.yaml")
    if path.parent.name != "MeG"
)
# A.12 of the paper: layers, and the covariance's weight.
PAPER = {
    "MEMIT/phi-2": ([3, 4, 5, 6, 7, 8, 9, 10, 11], 15000),
    "MEMIT/llama3-8b": ([2, 3, 4, 5, 6], 1000),
    "PMET/phi-2": ([3, 4, 5, 6, 7, 8, 9, 10], 1000),
    "PMET/llama3-8b": ([2, 3, 4, 5, 6], 13000),
    "MALMEN/phi-2": ([26, 27, 28, 29, 30, 31], None),
    "SCEN/phi-2": ([29], None),
    "SCEN/gpt-j-6B": ([27], None),
    "FT/phi-2": ([29], None),
    "FT/gpt-j-6B": ([9], None),
    "FT/llama3-8b": ([14], None),
}


def load(name: str) -> BaselineHyperParams:
    method = BASELINES[METHODS[name.partition("/")[0]]]
    return method.settings.from_hparams(FOLDER / name)


def test_every_method_has_files_and_every_file_a_method() -> None:
    assert {name.partition("/")[0] for name in FILES} == set(METHODS)
    assert set(METHODS.values()) == set(BASELINES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_sets_what_it_says(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    hparams, values = load(name), yaml.safe_load(text)
    assert values.pop("device") == 0 and hparams.device == "cuda:0"
    assert {key: getattr(hparams, key) for key in values} == values
    assert text.startswith("# ")  # where the values are from


@pytest.mark.parametrize("name", FILES)
def test_layers_and_modules_are_in_the_real_model(name: str) -> None:
    hparams: Any = load(name)
    model = _model(name.partition("/")[2])
    if isinstance(hparams, LocateHyperParams):
        hparams.check(model)
    if isinstance(hparams, TokenGradientHyperParams):
        result = hparams.linear_layers(model)
        assert result == hparams.inner_params or not hparams.inner_params
    elif isinstance(hparams, LayerHyperParams):
        result = hparams.down_projections(model)
        own = hparams.changed(rewrite_module_tmp=None)
        assert result == own.down_projections(model) and len(result) == len(hparams.layers)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name: str) -> None:
    hparams: Any = load(name)
    layers, weight = PAPER[name]
    assert hparams.layers == layers
    assert weight is None or hparams.mom2_update_weight == weight


def test_a_file_makes_a_method_of_the_benchmark() -> None:
    preset = MeGHyperParams.preset("default")
    method = resolve_method(f"memit={FOLDER}/MEMIT/phi-2.yaml", preset, preset)
    assert method.name == "memit" and method.hparams == load("MEMIT/phi-2")
    assert set(ARCHITECTURES) >= {name.partition("/")[2] for name in FILES}


# What EasyEdit's own files hold beside the settings that we read.
_MODULES = {
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "lm_head",
    "model_parallel": False,
    "batch_size": 1,
    "max_length": 40,
}
_LOCATE = {
    **_MODULES,
    "stats_dir": "./data/stats",
    "layer_selection": "all",
    "mom2_adjustment": True,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
    "mom2_update_weight": 15000,
}
_TRAINED = {
    "model_class": "AutoModelForCausalLM",
    "class_name": "AutoModelForCausalLM",
    "tokenizer_class": "AutoTokenizer",
    "tokenizer_name": "x",
    "dropout": 0.0,
    "no_grad_layers": None,
    "silent": False,
    "half": True,
    "results_dir": "./results",
}
EASYEDIT: dict[str, dict[str, Any]] = {
    "ft": {
        **_MODULES,
        "kl_factor": 0,
        "norm_constraint": False,
        "objective_optimization": "target_new",
        "lr": "5e-4",
    },
    "memit": _LOCATE,
    "pmet": {**_LOCATE, "rewrite_module_tmps": ["model.layers.{}.mlp.down_proj"]},
    "alphaedit": {**_LOCATE, "P_loc": "./null_space_project.pt", "L2": 1},
    "ultraedit": _TRAINED,
    "malmen": {**_TRAINED, "archive": "x", "val_steps": 200, "early_stop_key": "ES_val"},
}


@pytest.mark.parametrize("name", EASYEDIT)
def test_easyedits_extra_keys_are_accepted_and_dropped(name: str, tmp_path: Path) -> None:
    settings, path = BASELINES[name].settings, tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump({"layers": [4], "evaluation_type": None, **EASYEDIT[name]}))
    read: Any = settings.from_hparams(path)
    assert read.layers == [4] and settings.from_dict(read.to_dict()) == read
    shown = {entry.name for entry in dataclasses.fields(settings)}
    assert not shown & {*_MODULES, *_TRAINED, "archive", "P_loc", "stats_dir"} - {"model_parallel"}
    if name == "pmet":
        assert read.rewrite_module_tmp == "model.layers.{}.mlp.down_proj"
    if name == "ft":
        assert read.norm_constraint is None


def test_keys_that_no_method_knows_are_refused_with_the_nearest_name() -> None:
    for name, baseline in BASELINES.items():
        with pytest.raises(HParamsError, match="'promt_template'; did you mean 'prompt_template'"):
            baseline.settings.from_dict({"promt_template": "{}"})
        with pytest.raises(TypeError):
            baseline.settings(stats_dir="x")  # in files only
        assert len(dataclasses.fields(baseline.settings)) <= 28, name
    memit, ft = BASELINES["memit"].settings, BASELINES["ft"].settings
    with pytest.raises(HParamsError, match="layer_selection: expected 'all' .* got 'random'"):
        memit.from_dict({"layer_selection": "random"})
    for values in ({"layer_selection": "x" * 9999}, {"layers": [9] * 9999}, {"alg_name": "x" * 99}):
        with pytest.raises(HParamsError) as caught:
            memit.from_dict(values)
        assert len(str(caught.value)) < 300
    with pytest.raises(HParamsError, match="objective_optimization: expected 'target_new'"):
        ft.from_dict({"objective_optimization": "prompt_last"})
    with pytest.raises(HParamsError, match="told.*it is context_template now"):
        BASELINES["retrieval"].settings.from_dict({"told": "{prompt} {target} "})


def test_settings_of_an_earlier_report_are_read_under_their_new_names() -> None:
    read: Any = BASELINES["retrieval"].hparams({"told": "New: {prompt} {target}", "threshold": 0.6})
    assert (read.context_template, read.threshold) == ("New: {prompt} {target}", 0.6)


def test_no_setting_is_shown_that_its_method_does_not_need() -> None:
    for baseline in BASELINES.values():
        helps = [entry.metadata["help"] for entry in dataclasses.fields(baseline.settings)]
        assert not any("not needed" in text.lower() for text in helps)


def of_depth(layers: int) -> Any:
    """A Llama without weights."""
    config = tf.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=layers,
    )
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


def test_layers_follow_from_the_depth_where_none_are_named() -> None:
    for depth in (1, 2, 4, 30, 48):
        model = of_depth(depth)
        for name, baseline in BASELINES.items():
            hparams: Any = baseline.hparams({})
            if name != "retrieval":
                layers = hparams.layers_of(model)
                assert layers == list(range(layers[0], layers[-1] + 1)), (name, depth)
                assert layers[0] >= 0 and layers[-1] < depth and hparams.layers is None
                assert len(layers) == 1 or not hparams.one_layer
    for file in ("AlphaEdit", "LocFT", "NeuralDB", "HOREN", "MALMEN", "RLEdit"):  # as the authors
        named: Any = load(f"{file}/llama3-8b")
        assert named.changed(layers=None).layers_of(of_depth(32)) == named.layers_of(model), file


def test_layers_which_a_method_cannot_use_are_left_out(tiny_tokenizer: Any) -> None:
    """Blocks of Nemotron-H are recurrence or attention or an FFN or experts."""
    family = next(family for family in FAMILIES if family.config == "NemotronHConfig")
    model = build(family, tiny_tokenizer)
    hparams: dict[str, Any] = {name: BASELINES[name].hparams({}) for name in BASELINES}
    assert [hparams[name].layers_of(model) for name in ("memit", "malmen", "ft")] == [[3]] * 3
    with pytest.raises(ValueError, match="has no decoder FFN among"):
        hparams["pmet"].layers_of(model)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", BASELINES)
def test_every_method_runs_without_a_file_on_any_model(
    name: str, mode: Any, tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder
) -> None:
    facts = [EditRequest(PROMPTS[0], "tea", "Atlantis"), EditRequest(PROMPTS[1], "ore", "Borduria")]
    pseudo = [EditRequest(text, "x", None, (f"Say: {text}",), OTHERS[:1]) for text in PROMPTS[8:12]]
    quick = {"max_iters": 1, "num_seq": 1, "n_epochs": 1, "rank": 4, "n_edits": 2}
    with mode():
        edited, before = BASELINES[name].apply(
            tiny_llama,
            tiny_tokenizer,
            facts,
            BASELINES[name].hparams(quick),
            copy=True,
            return_orig_weights=True,
            texts=PROMPTS,
            pseudo=pseudo,
            encoder=tiny_encoder,
        )
    assert set(before) <= dict(tiny_llama.named_parameters()).keys()
    assert len(greedy_answers(edited, tiny_tokenizer, PROMPTS[:2], 4)) == 2
