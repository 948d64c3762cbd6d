"""hparams/<METHOD>: every file loads, and names layers and modules which its model really has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
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
        found = hparams.linear_layers(model)
        assert found == hparams.inner_params or not hparams.inner_params
    elif isinstance(hparams, LayerHyperParams):
        found = hparams.down_projections(model)
        own = hparams.changed(rewrite_module_tmp=None)
        assert found == own.down_projections(model) and len(found) == len(hparams.layers)


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
