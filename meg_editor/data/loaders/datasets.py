"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meg_editor.data.cases import Dataset
from meg_editor.data.loaders.counterfact import load_counterfact
from meg_editor.data.loaders.easyedit_schema import load_wikibigedit
from meg_editor.data.loaders.knowedit import load_knowedit
from meg_editor.data.loaders.mquake import load_mquake
from meg_editor.data.loaders.unke import load_unke
from meg_editor.data.loaders.zsre import load_zsre

DATASETS: dict[str, Callable[[str | Path], Dataset]] = {
    "counterfact": load_counterfact,
    "zsre": load_zsre,
    "mquake": load_mquake,
    "unke": load_unke,
    "knowedit": load_knowedit,
    "wikibigedit": load_wikibigedit,
}
