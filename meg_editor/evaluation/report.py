"""report.json of a run, and its table."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

import meg_editor
from meg_editor.evaluation.forms import FormScores
from meg_editor.evaluation.result import Evaluation
from meg_editor.model.fit_report import FitReport
from meg_editor.runtime.text_files import write_json


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on; ours with its commit, in a checkout."""
    return {
        "meg_editor": _own_version(Path(meg_editor.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
    }


def _own_version(root: Path) -> str:
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        with suppress(OSError, subprocess.SubprocessError):  # no git, or no commit yet
            run = subprocess.run(
                [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=10
            )
            return f"{meg_editor.__version__}+{run.stdout.strip().replace('-', '.')}"
    return meg_editor.__version__


def machine() -> dict[str, Any]:
    """CPU model, cores that may be used, threads of torch, and the GPU, None without one.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'gpu', 'torch_threads']
    """
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return {
        "cpu": _cpu(),
        "cores": len(allowed(0)) if allowed else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu() -> str:
    with suppress(OSError):  # Linux alone has this file
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@dataclass(repr=False)
class MethodReport:
    """One method's evaluation, and its fit if it has one; printed as one line.

    Attributes:
        forms: where facts were asked in prompt forms.
    """

    evaluation: Evaluation
    fit: FitReport | None = None
    stored_bytes: int | None = None
    forms: FormScores | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.evaluation!r})"

    def to_dict(self) -> dict[str, Any]:
        """The entry `methods.<name>` of report.json; percentages, seconds, bytes."""
        scores, fit = self.evaluation.scores, self.fit
        entry: dict[str, Any] = {
            **asdict(scores),
            "score": scores.score,
            "locality_by_kind": {k: asdict(v) for k, v in self.evaluation.locality_by_kind.items()},
            "oracle_generality": self.evaluation.oracle_generality,
            "intervals": {k: list(v) for k, v in self.evaluation.intervals.items()},
            "worst_case_generality": self.evaluation.worst_case_generality,
            "retained_by_kind": self.evaluation.retained_by_kind,
            "portability_by_kind": self.evaluation.portability_by_kind,
            "trapped_by_kind": self.evaluation.trapped_by_kind,
            "gate": asdict(self.evaluation.gate) if self.evaluation.gate else None,
            "milliseconds_per_query": self.evaluation.milliseconds_per_query,
        }
        if self.forms:
            entry |= self.forms.to_dict()
        if fit and self.stored_bytes is not None:
            entry |= {
                "seconds": fit.seconds,
                "seconds_per_edit": fit.seconds_per_edit,
                "bytes_per_edit": self.stored_bytes / fit.edits,
                "edits": fit.edits,
                "duplicates": fit.duplicates,
                "already_correct": len(fit.already_correct),
                "not_collected": len(fit.not_collected),
                "resumed_stages": fit.resumed,
            }
            if fit.calibration:
                entry["calibration"] = {
                    "threshold": fit.calibration.threshold,
                    "balance": 100 * fit.calibration.balance,
                    "state_weight": fit.calibration.state_weight,
                    "thresholds": _rounded(fit.calibration.thresholds),
                    "generality": _rounded(100 * fit.calibration.generality),
                    "locality": _rounded(100 * fit.calibration.locality),
                }
        return entry


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


@dataclass(repr=False)
class EvaluationReport:
    """All methods of one run; printed as its table.

    Example:
        >>> print(EvaluationReport(edits=8, seed=0, device="cpu"))
        EvaluationReport(8 edits, seed 0, cpu)
        | Method | Rel AG | Rel TF | Gen AG | Gen TF | Loc AG | Loc TF | Score ...
    """

    edits: int
    seed: int
    device: str
    methods: dict[str, MethodReport] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.edits} edits, seed {self.seed}, {self.device})\n{self.table()}"

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "edits": self.edits,
            "seed": self.seed,
            "device": self.device,
            "versions": versions(),
            "methods": {name: method.to_dict() for name, method in self.methods.items()},
            **self.extra,
        }

    def write(self, path: Path) -> None:
        """Write JSON, all or nothing."""
        write_json(path, self.to_dict())

    def table(self) -> str:
        """Markdown, in the layout of the paper's tables."""
        lines = [
            "| Method | Rel AG | Rel TF | Gen AG | Gen TF | Loc AG | Loc TF | Score "
            "| Oracle gen | ms/query | s/edit | KB/edit |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, method in self.methods.items():
            s, fit = method.evaluation.scores, method.fit
            cells = [
                f"{v:.1f}" for p in (s.reliability, s.generality, s.locality) for v in (p.ag, p.tf)
            ]
            oracle = method.evaluation.oracle_generality
            cells += [f"{s.score:.1f}", "-" if oracle is None else f"{oracle:.1f}"]
            if fit and method.stored_bytes is not None:
                cells += [
                    f"{method.evaluation.milliseconds_per_query:.2f}",
                    f"{fit.seconds_per_edit:.3f}",
                    f"{method.stored_bytes / fit.edits / 1024:.1f}",
                ]
            else:
                cells += ["-", "-", "-"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)
