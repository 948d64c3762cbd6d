"""The Python and the commands of the README and of docs/, and small fits for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.world import requests as world_requests

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
PROGRAMS = ("meg-editor ", "python ", "pip ", "pytest", "torchrun ", "accelerate ")
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:meg-editor|python examples/)[^`]*)`(?!`)")


class Snippet(NamedTuple):
    """A block of Python; `needs` says why it is not run: ```python title="needs a GPU"."""

    code: str
    needs: str


def name_of(page: Path) -> str:
    """Of a test."""
    return page.relative_to(ROOT).as_posix()


def snippets(text: str) -> list[Snippet]:
    """The fenced Python blocks of a page."""
    return [Snippet(code, needs) for kind, needs, code in _FENCE.findall(text) if kind == "python"]


def commands(text: str) -> list[str]:
    """The lines of its indented blocks, without comments; `\\` at the end goes on."""
    plain = _FENCE.sub("", text).replace("\\\n", " ")
    lines = [line.strip().partition("  #")[0] for line in plain.splitlines() if line[:4] == "    "]
    return [" ".join(line.split()) for line in lines if line.startswith(PROGRAMS)]


def inline_commands(text: str) -> list[str]:
    """`meg-editor …` and `python examples/…` within its sentences."""
    return [" ".join(line.split()) for line in _INLINE.findall(_FENCE.sub("", text))]


def small_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 and 24 facts tune and calibrate instead of 800 and 400; 8 tuning steps instead of 120."""
    for name, count in (("pseudo_requests", 48), ("calibration_requests", 24)):
        monkeypatch.setattr(getattr(world_requests, name), "__defaults__", (None, count))
    preset = MeGHyperParams.preset
    small = staticmethod(lambda name, **changes: preset(name, **{"encoder_steps": 8, **changes}))
    monkeypatch.setattr(MeGHyperParams, "preset", small)
