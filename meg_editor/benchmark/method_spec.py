"""The names which --methods takes, parsed once."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark.methods import Method
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.apply import apply_meg_to_model
from meg_editor.integrations.easyedit.methods import NAMES as EASYEDIT
from meg_editor.integrations.easyedit.methods import easyedit_method
from meg_editor.runtime.files import check_regular

_GENERATORS = ("dit", "mlp", "bank")
BUILT_IN = ("unedited", "meg", "meg-paper", *(f"meg-{name}" for name in _GENERATORS))
# `all`, beside the baselines; the bank is the upper bound of what generated neurons can do.
_ALL = ("unedited", "meg", "meg-paper", "meg-bank")

Kind = Literal["built-in", "baseline", "easyedit", "file", "module"]


@dataclass(frozen=True)
class MethodSpec:
    """A method by name.

    Attributes:
        name: as given: "meg", "memit", "easyedit:MEMIT", "memit=file.yaml", "mine=file.py".
        label: its row in the tables.
        kind: `built-in`, `baseline` (ours) or `easyedit` (theirs, with the settings of ours), both
            with searched settings; `file` (a baseline with its settings) or `module` (your own).
        baseline: whose settings it has; None for `built-in` and `module`.
        place: the YAML file, Python file or module.

    Example:
        >>> MethodSpec.parse("easyedit:MEMIT").baseline, MethodSpec.parse("meg").baseline
        ('memit', None)
    """

    name: str
    label: str
    kind: Kind
    baseline: str | None = None
    place: str = ""

    @classmethod
    def parse(cls, name: str) -> MethodSpec:
        """Read one name.

        Raises:
            ValueError: there is no such method.
        """
        label, given, place = name.partition("=")
        if given and label in BASELINES and place.endswith((".yaml", ".yml")):
            return cls(name, label, "file", label, place)
        if given:
            return cls(name, label, "module", None, place)
        prefix, colon, method = name.partition(":")
        if colon and prefix == "easyedit":
            if method.lower() not in EASYEDIT:
                raise ValueError(f"method: expected easyedit: and one of {EASYEDIT}, got {name!r}")
            return cls(name, name, "easyedit", method.lower())
        if name in BASELINES:
            return cls(name, name, "baseline", name)
        if name not in BUILT_IN:
            raise ValueError(
                f"method: expected all, {', '.join([*BUILT_IN, *BASELINES])} or NAME=FILE.py "
                f"(your own), got {name!r}"
            )
        return cls(name, name, "built-in")

    @classmethod
    def parse_list(cls, names: str) -> list[MethodSpec]:
        """Comma-separated names, each once; `all` stands for MeG, its variants and all baselines.

        Raises:
            ValueError: one of them is no method, or two would have one row.
        """
        every = [
            one
            for name in names.split(",")
            for one in ((*_ALL, *BASELINES) if name == "all" else (name,))
        ]
        specs = [cls.parse(name) for name in dict.fromkeys(every)]
        rows: dict[str, MethodSpec] = {}
        for spec in specs:
            if (other := rows.setdefault(spec.label, spec)) is not spec:
                raise ValueError(
                    f"methods: expected one for each row of the table, got {other.name!r} and "
                    f"{spec.name!r} for {spec.label}: measure them in two runs"
                )
        return specs

    @property
    def searched(self) -> str | None:
        """The baseline whose settings are to be chosen; None where they are given."""
        return self.baseline if self.kind in ("baseline", "easyedit") else None

    def resolve(
        self,
        hparams: MeGHyperParams,
        paper: MeGHyperParams,
        chosen: Mapping[str, BaselineHyperParams] | None = None,
    ) -> Method:
        """The method itself.

        Args:
            hparams: of MeG's `default` preset, for the model in question.
            paper: of the `paper` preset.
            chosen: baseline -> its settings, for one that is `searched`.

        Raises:
            ValueError: settings are to be chosen and are not, or a module lacks `apply_to_model`.
        """
        asked = {"prompt_template": hparams.prompt_template}  # the same for all methods
        if self.kind == "file" and self.baseline:
            method = BASELINES[self.baseline]
            read = method.settings.from_hparams(self.place)
            return Method(self.label, method.apply, read.changed(**asked))
        if self.kind == "module":
            return self._own()
        if self.searched:
            if chosen is None or self.searched not in chosen:
                raise ValueError(
                    f"method: expected settings for {self.name!r}: give {self.searched}=FILE.yaml, "
                    f"or one of {', '.join(BUILT_IN)}"
                )
            settings = chosen[self.searched]
            if self.kind == "easyedit":
                return Method(self.label, easyedit_method(self.searched), settings)
            return Method(self.label, BASELINES[self.searched].apply, settings)
        if self.name == "unedited":
            return Method("unedited", _unedited)
        if self.name == "meg-paper":
            return Method(self.name, apply_meg_to_model, paper.changed(**asked))
        _, _, generator = self.name.partition("-")
        settings_of_meg = hparams.changed(generator=generator) if generator else hparams
        return Method(self.name, apply_meg_to_model, settings_of_meg)

    def _own(self) -> Method:
        module = _load(self.place)
        if not callable(getattr(module, "apply_to_model", None)):
            raise ValueError(
                f"method {self.label!r}: {self.place} has no function apply_to_model(model, tok, "
                "requests, hparams, **kwargs)"
            )
        return Method(self.label, module.apply_to_model, getattr(module, "hparams", None))


def resolve_method(name: str, hparams: MeGHyperParams, paper: MeGHyperParams) -> Method:
    """A built-in method by name, a baseline with its settings as `memit=file.yaml`, or one of your
    own as `name=file.py` or `name=package.module`.

    Your module has a function `apply_to_model` with the signature of `Method.apply`, and if it
    wants any, its `hparams`.

    Args:
        hparams: of MeG's `default` preset, for the model in question.
        paper: of the `paper` preset.

    Raises:
        ValueError: there is no such method, or the module lacks `apply_to_model`.
    """
    return MethodSpec.parse(name).resolve(hparams, paper)


def _unedited(model: Any, *_: Any, **__: Any) -> tuple[Any, dict[str, Any]]:
    return model, {}


def _load(place: str) -> Any:
    try:
        return _import(place)
    except Exception as error:  # whatever the module of a user raises
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"method: {place} cannot be imported: {what}; mend it") from error


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if check_regular(path, missing_ok=True) is None:
        raise ValueError(f"there is no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError("it cannot be read as a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
