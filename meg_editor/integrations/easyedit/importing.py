"""Import EasyEdit unchanged, with only its dependencies for language models installed.

EasyEdit, the wheel 0.0.1.dev0 as well as the current checkout, imports some twenty packages for
parts which seldom run, and the wheel writes every device as "cuda:N". A custom loader therefore
rewrites its source in memory, not on disk:

- a failing import binds a stub, which raises when it is called (see `absent.py`);
- `f"cuda:{device}"` accepts "cpu" and "cuda:0" too.

Side effects of the import (CUDA_LAUNCH_BLOCKING, seeds, handlers of the root logger) are undone.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import numpy as np
import torch

_PACKAGE = "easyeditor"
_HELP = (
    "install the wheel with `pip install --no-deps easyeditor==0.0.1.dev0`, or put a checkout of "
    "EasyEdit on PYTHONPATH"
)


class EasyEditError(ImportError):
    """EasyEdit is missing, too old, or broken."""


def import_easyedit() -> ModuleType:
    """The package `easyeditor`; imported once.

    Raises:
        EasyEditError: it is not installed, cannot be imported, or is of another version; the
            message says what to do.
    """
    if sys.modules.get(_PACKAGE):
        return _checked(sys.modules[_PACKAGE])
    if importlib.util.find_spec(_PACKAGE) is None:
        raise EasyEditError(f"EasyEdit is not installed: {_HELP}")
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        with _process_unchanged():
            return _checked(importlib.import_module(_PACKAGE))
    except BaseException as error:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]
        if isinstance(error, (EasyEditError, KeyboardInterrupt)):
            raise
        raise EasyEditError(
            f"EasyEdit cannot be imported ({type(error).__name__}: {error}); {_HELP}"
        ) from error


def device_name(device: Any) -> str:
    """Name of a device of EasyEdit.

    Example:
        >>> device_name(1), device_name("cpu"), device_name("cuda:1")
        ('cuda:1', 'cpu', 'cuda:1')
    """
    text = str(device)
    return text if text.startswith(("cpu", "cuda")) else f"cuda:{text}"


def _checked(package: ModuleType) -> ModuleType:
    required = ("BaseEditor", "HyperParams")
    if lacking := [name for name in required if not hasattr(package, name)]:
        raise EasyEditError(
            f"{package.__name__} at {getattr(package, '__file__', None)} has no "
            f"{' and no '.join(lacking)}: it is not EasyEdit, or too old; {_HELP}"
        )
    return package


class _Finder(MetaPathFinder):
    """Finds the modules of EasyEdit only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and type(spec.loader) is SourceFileLoader and spec.origin:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        # Not through __pycache__, which belongs to the unchanged source.
        path = self.get_filename(fullname)
        tree = _Rewriter().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Devices(ast.NodeTransformer):
    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        match node.values:
            case [ast.Constant(value="cuda:"), ast.FormattedValue(value=device)]:
                code = f"__import__({__name__!r}, fromlist=['_']).device_name"
                function = ast.parse(code, mode="eval").body
                return ast.Call(func=function, args=[device], keywords=[])
        return node


class _Rewriter(_Devices):
    def visit_Import(self, node: ast.Import) -> Any:
        bound = {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            for alias in node.names
        }
        return _otherwise(node, bound)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.level or node.module in (None, "__future__"):
            return node
        names = [alias for alias in node.names if alias.name != "*"]
        return _otherwise(node, {a.asname or a.name: f"{node.module}.{a.name}" for a in names})

    def visit_Try(self, node: ast.Try) -> Any:
        return _Devices().generic_visit(node)  # EasyEdit handles failing imports itself


def _otherwise(node: ast.Import | ast.ImportFrom, bound: dict[str, str]) -> list[ast.stmt]:
    """One `try` per name: the import, else a stub."""
    statements: list[ast.stmt] = []
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        one: ast.stmt = (
            ast.Import([alias])
            if isinstance(node, ast.Import)
            else ast.ImportFrom(node.module, [alias], 0)
        )
        code = (
            "pass"
            if alias.name == "*"
            else (
                f"from meg_editor.integrations.easyedit.absent import absent as {name}\n"
                f"{name} = {name}({bound[name]!r})"
            )
        )
        handler = ast.ExceptHandler(ast.Name("ImportError", ast.Load()), None, ast.parse(code).body)
        statements.append(ast.Try([one], [handler], [], []))
    return [ast.copy_location(statement, node) for statement in statements]


@contextmanager
def _process_unchanged() -> Iterator[None]:
    """Restores environment variables, random states and the root logger."""
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            random.setstate(states[0])
            np.random.set_state(states[1])
            root.handlers[:] = handlers
            root.setLevel(level)
