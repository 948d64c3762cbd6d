"""Methods side by side: the same edits, prompts and matching rule for all, in one run."""

from meg_editor.benchmark.methods import Method, edited, resolve_method
from meg_editor.benchmark.runner import Benchmark, run_benchmark

__all__ = ["Benchmark", "Method", "edited", "resolve_method", "run_benchmark"]
