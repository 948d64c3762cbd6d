"""The `Example:` blocks of docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

import meg_editor

_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_OPTIONAL = "meg_editor.integrations.lm_eval"  # needs lm-evaluation-harness


def _with_examples() -> list[str]:
    """Names of the modules whose source holds a doctest, found without importing them."""
    walk = pkgutil.walk_packages(meg_editor.__path__, "meg_editor.")
    names = ["meg_editor", *(module.name for module in walk)]
    sources = {name: _source(name) for name in names if not name.endswith("__main__")}
    return sorted(name for name, source in sources.items() if ">>> " in source)


def _source(name: str) -> str:
    spec = import_module("importlib.util").find_spec(name)
    return spec.loader.get_source(name) or ""


@pytest.fixture(autouse=True)
def one_thread(capfd: pytest.CaptureFixture[str]) -> object:
    """Examples are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", _with_examples())
def test_examples_run(name: str) -> None:
    if name == _OPTIONAL:
        pytest.importorskip("lm_eval")
    results = doctest.testmod(import_module(name), optionflags=_OPTIONS)
    assert not results.failed


@pytest.mark.parametrize("name", meg_editor.__all__)
def test_public_names_have_an_example(name: str) -> None:
    assert ">>> " in (getattr(meg_editor, name).__doc__ or "")
