"""Methods side by side: the same edits, prompts and matching rule for all, in one run."""

from meg_editor.benchmark.cell import Cell, read_cells
from meg_editor.benchmark.definition import Benchmark, FittingFacts
from meg_editor.benchmark.method_spec import MethodSpec, resolve_method
from meg_editor.benchmark.methods import Method, edited
from meg_editor.benchmark.runner import run_benchmark

__all__ = [
    "Benchmark",
    "Cell",
    "FittingFacts",
    "Method",
    "MethodSpec",
    "edited",
    "read_cells",
    "resolve_method",
    "run_benchmark",
]
