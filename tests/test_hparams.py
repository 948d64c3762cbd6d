"""Hyper-parameters: what YAML says is what is set, and what cannot be set is refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import meg_editor
from meg_editor.config.base_editor import BaseEditorFields
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.config.settings import HParamsError

_SHARES = ("generator_dropout", "generator_ema")
PRESETS = sorted((Path(meg_editor.__file__).parent / "config" / "presets").glob("*.yaml"))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("genrator", "generator"),
        ("sampling_step", "sampling_steps"),
        ("layer", "layers"),
        ("encoder-name", "encoder_name"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(wrong: str, nearest: str) -> None:
    with pytest.raises(HParamsError) as caught:
        MeGHyperParams.from_dict({wrong: 1})
    assert repr(wrong) in str(caught.value)
    assert f"did you mean {nearest!r}" in str(caught.value)


def test_unknown_keys_like_nothing_say_where_the_settings_are_listed() -> None:
    with pytest.raises(
        HParamsError, match="unknown hyper-parameter 'xyzzy'; `meg-editor settings`"
    ):
        MeGHyperParams.from_dict({"xyzzy": 1})
    with pytest.raises(HParamsError, match="'xyzzy'; known: .*collection_shard_size.*neuron_cache"):
        RuntimeConfig.from_dict({"xyzzy": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("collection_steps", "sixty"),
        ("collection_steps", 60.0),
        ("collection_steps", True),
        ("collection_steps", None),
        ("collection_lr", "fast"),
        ("collection_lr", True),
        ("collection_lr", None),
        ("collection_lr", [1.0]),
        ("gate_threshold", "auto"),
        ("fp16", 1),
        ("fp16", "yes"),
        ("model_name", 7),
        ("device", 1.5),
        ("gate", "famliarity"),
        ("gate", None),
        ("generator", ["dit"]),
        ("diffusion_prediction", "epsilon"),
        ("layers", 5),
        ("layers", "5"),
        ("layers", [5.0]),
        ("layers", [True]),
        ("layers", []),
        ("layers", [1, 2]),
        ("alg_name", "ROME"),
        ("prompt_template", "Q:"),
        ("prompt_template", "{} {}"),
        ("batch_size", 0),
        ("sampling_steps", 0),
        ("collection_steps", -1),
        *((name, float("nan")) for name in ("collection_lr", "gate_threshold", "generator_ema")),
        *(
            (name, float("inf"))
            for name in ("encoder_lr", "gate_threshold", "collection_loss_threshold")
        ),
        ("gate_threshold", "-inf"),
        ("encoder_lr", -1e-4),
        ("collection_lr", -0.5),
        ("generator_lr", "-1e-3"),
        ("encoder_steps", -1),
        ("collection_loss_threshold", -0.1),
        ("generator_zero_augmentation", -0.1),
        ("sampling_steps", 1001),
        *((name, value) for name in _SHARES for value in (-0.01, 1, 1.5)),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(HParamsError) as caught:
        MeGHyperParams.from_dict({name: value})
    assert str(caught.value).startswith(f"{name}: expected")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "'1e-4'", ".0001"])
def test_scientific_notation_is_a_number_however_yaml_reads_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "meg.yaml"
    path.write_text(f"encoder_lr: {text}\n", "utf-8")
    assert MeGHyperParams.from_hparams(path).encoder_lr == 0.0001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_steps", 0),
        ("generator_ema", 0),
        ("gate_threshold", -0.5),
        ("sampling_steps", 1000),
    ],
)
def test_values_at_the_edge_are_taken(name: str, value: Any) -> None:
    assert getattr(MeGHyperParams.from_dict({name: value}), name) == value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("collection_margin", "collection_loss_threshold"),
        ("generator_condition", "generator_conditioning"),
        ("generator_scaling", "generator_scale"),
        ("generator_features", "generator: auto"),
        ("neuron_cache", "RuntimeConfig(neuron_cache=...)"),
        ("collection_shard_size", "RuntimeConfig(collection_shard_size=...)"),
        ("sampler", "DDIM always"),
    ],
)
def test_an_old_key_names_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"{old}: 1\n", "utf-8")
    with pytest.raises(HParamsError, match=re.escape(new)) as caught:
        MeGHyperParams.from_hparams(path)
    assert repr(old) in str(caught.value)


def test_settings_are_few_and_explained() -> None:
    own = {f.name for f in fields(MeGHyperParams)} - {f.name for f in fields(BaseEditorFields)}
    assert len(own) <= 39
    for entry in (*fields(MeGHyperParams), *fields(RuntimeConfig)):
        assert entry.metadata["help"].endswith("."), entry.name


def test_automatic_storage_needs_anchors() -> None:
    with pytest.raises(HParamsError, match="generator: auto needs generator_anchored"):
        MeGHyperParams(generator_anchored=False)


def test_whole_numbers_become_floats() -> None:
    value = MeGHyperParams(collection_lr=2, gate_threshold=1).collection_lr
    assert value == 2.0 and type(value) is float


def test_layers_hold_one_index() -> None:
    hparams = MeGHyperParams(layers=(29,))  # type: ignore[arg-type]
    assert hparams.layers == [29] and hparams.layer == 29


def test_instances_do_not_share_their_layers() -> None:
    layers = [0]
    first, second = MeGHyperParams(layers=layers), MeGHyperParams(layers=layers)
    first.layers[0] = 9  # type: ignore[index]
    assert second.layer == 0 and MeGHyperParams().layer is None


@pytest.mark.parametrize(
    ("given", "meant"), [(0, "cuda:0"), (3, "cuda:3"), ("cpu", "cpu"), ("cuda:1", "cuda:1")]
)
def test_easyedit_gives_devices_by_index(given: Any, meant: str) -> None:
    assert MeGHyperParams(device=given).device == meant


@pytest.mark.parametrize("name", ["gate_threshold", "generator_scale", "mlp_module_tmp"])
def test_null_means_found_or_calibrated(name: str) -> None:
    assert getattr(MeGHyperParams.from_dict({name: None}), name) is None


@pytest.mark.parametrize("stem", ["meg", "phi-2", "llama3.2-3b"])
def test_yaml_may_be_left_off(tmp_path: Path, stem: str) -> None:
    (tmp_path / f"{stem}.yaml").write_text("seed: 12\nlayers: [3]\n", "utf-8")
    for path in (tmp_path / f"{stem}.yaml", tmp_path / stem, str(tmp_path / stem)):
        hparams = MeGHyperParams.from_hparams(path)
        assert (hparams.seed, hparams.layer) == (12, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        MeGHyperParams.from_hparams(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "- seed\n- 1\n", "42", "just text", "seed: [1\n"])
def test_files_that_are_no_flat_mapping_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(HParamsError, match="broken.yaml") as caught:
        MeGHyperParams.from_hparams(path)
    assert "\n" not in str(caught.value)


def test_files_which_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("prompt_template: 'né {}'".encode("latin-1"))
    with pytest.raises(HParamsError, match="latin.yaml: not YAML"):
        MeGHyperParams.from_hparams(tmp_path / "latin.yaml")


def test_a_file_whose_name_has_no_yaml_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "settings.yml").write_text("seed: 5", "utf-8")
    assert MeGHyperParams.from_hparams(tmp_path / "settings.yml").seed == 5
    (tmp_path / "phi-2").mkdir()  # the model beside its settings
    (tmp_path / "phi-2.yaml").write_text("seed: 6", "utf-8")
    assert MeGHyperParams.from_hparams(tmp_path / "phi-2").seed == 6


def test_nested_sections_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nested.yaml"
    path.write_text("generator:\n  width: 3\n", "utf-8")
    with pytest.raises(HParamsError, match="generator"):
        MeGHyperParams.from_hparams(path)


def _changed() -> dict[str, Any]:
    """A value for every setting which is not its default."""
    values: dict[str, Any] = {
        "layers": [7],
        "alg_name": "MeG",
        "prompt_template": "Q: {}\nA:",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "gate_threshold": 0.3,
        "collection_contexts": 4,
        "evaluation_type": "traditional",
        "api_key": "secret",
        "collection_optimizer": "sgd",
        "generator_conditioning": "time",
        "generator_scale": 0.02,
        "generator": "dit",
        "generator_width": 512,
        **dict.fromkeys((*_SHARES, "gate_name_weight", "gate_state_weight"), 0.25),
    }
    hints = get_type_hints(MeGHyperParams)
    for name, value in MeGHyperParams().to_dict().items():
        if name in values:
            continue
        if get_origin(hints[name]) is Literal:
            values[name] = next(option for option in get_args(hints[name]) if option != value)
        elif isinstance(value, bool):
            values[name] = not value
        else:
            values[name] = f"{value}x" if isinstance(value, str) else value + 1
    return values


def test_round_trip_of_every_setting() -> None:
    changed, defaults = _changed(), MeGHyperParams().to_dict()
    assert [name for name in defaults if changed[name] == defaults[name]] == ["alg_name"]
    hparams = MeGHyperParams.from_dict(changed)
    assert hparams.to_dict() == changed
    through_json = json.loads(json.dumps(hparams.to_dict()))
    assert MeGHyperParams.from_dict(through_json) == hparams
    through_yaml = yaml.safe_load(yaml.safe_dump(hparams.to_dict()))
    assert MeGHyperParams.from_dict(through_yaml) == hparams


def test_changing_the_dict_leaves_the_hparams() -> None:
    hparams = MeGHyperParams(layers=[0])
    hparams.to_dict()["layers"][0] = 9  # type: ignore[index]
    assert hparams.layer == 0


def test_presets_are_shipped_and_named_in_the_documentation() -> None:
    assert {"default", "paper"} <= {path.stem for path in PRESETS}
    for name in ("default", "paper"):
        assert f'"{name}"' in str(MeGHyperParams.preset.__doc__)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_says_what_its_file_says(path: Path) -> None:
    hparams = MeGHyperParams.preset(path.stem)
    for name, value in yaml.safe_load(path.read_text("utf-8")).items():
        assert getattr(hparams, name) == value
    assert MeGHyperParams.preset(path.stem, seed=41, layers=[3]).to_dict() == {
        **hparams.to_dict(),
        "seed": 41,
        "layers": [3],
    }


def test_unknown_presets_list_those_there_are() -> None:
    with pytest.raises(HParamsError) as caught:
        MeGHyperParams.preset("refrence")
    assert "'refrence'" in str(caught.value)
    for path in PRESETS:
        assert path.stem in str(caught.value)


def test_presets_refuse_unknown_changes() -> None:
    with pytest.raises(HParamsError, match="did you mean 'seed'"):
        MeGHyperParams.preset(PRESETS[0].stem, seeds=1)
