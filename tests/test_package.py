"""The package as a whole: which module may import which, what code may not do, what is shipped."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "meg_editor").rglob("*.py"))
}
MAX_LINES = 330
# These store or load pickles, which run code.
PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "torch.load", "torch.save")


def module_name(file: str) -> str:
    """meg_editor/gates/__init__.py -> meg_editor.routing.gates."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imports(file: str, source: str, *, in_functions: bool = False) -> Iterator[str]:
    """The dotted names which a file imports; `from a import b` gives a.b.

    Imports inside `if`, `try` and classes count, those inside functions only with `in_functions`.
    """
    package = module_name(file).split(".")
    if not file.endswith("/__init__.py"):
        package.pop()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            base = [*parents, node.module] if node.module else parents
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse  # the rest is for type checkers alone
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` which it imports at its top level.

    Importing a.b runs a/__init__.py too; as everything in a package does that, it does not count.
    """
    modules = {module_name(file) for file in sources}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for file, source in sources.items():
        for name in imports(file, source):
            while (
                name and name not in modules
            ):  # meg_editor.routing.gates.Gate -> meg_editor.routing.gates
                name = name.rpartition(".")[0]
            if name:
                graph[module_name(file)].add(name)
    return graph


def import_cycle(sources: dict[str, str]) -> list[str]:
    """Modules which import each other in a circle, the first one again at the end; or []."""
    try:
        TopologicalSorter(import_graph(sources)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def violations(file: str, source: str) -> list[str]:
    """What a file of meg_editor does but may not do."""
    tree, module = ast.parse(source), module_name(file)
    result = []
    if not ast.get_docstring(tree):
        result.append("has no module docstring")
    if (lines := len(source.splitlines())) > MAX_LINES:
        result.append(f"has {lines} lines, more than {MAX_LINES}")

    if not within(module, "meg_editor.integrations.easyedit"):
        names = imports(file, source)
        result += [
            f"imports {name} at its top level" for name in names if within(name, "easyeditor")
        ]
    everywhere = list(imports(file, source, in_functions=True))
    if not within(module, "meg_editor.cli") and module != "meg_editor.__main__":
        result += [f"imports {name}" for name in everywhere if within(name, "meg_editor.cli")]
    result += [f"imports {n}" for n in everywhere if any(within(n, pickle) for pickle in PICKLES)]

    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            result.append(f"line {node.lineno}: assert, which python -O leaves out")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLES:
            result.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            result.append(f"line {node.value.lineno}: allow_pickle")
    return result


def test_imports_point_one_way():
    graph = import_graph(SOURCES)
    assert "meg_editor.lm.neuron" in graph["meg_editor.model.meg_model"]  # the graph is not empty
    assert not import_cycle(SOURCES)


# Each folder may import from those before it.
FOLDERS = (
    "runtime",
    "config",
    "requests",
    "lm",
    "routing",
    "collection",
    "generators",
    "data",
    "edits",
    "model",
    "fitting",
    "baselines",
    "evaluation",
    "reports",
    "integrations",
    "benchmark",
    "serving",
    "cli",
)


def test_folders_are_layers():
    """Not even inside a function does a folder import from one above it."""
    for file, source in SOURCES.items():
        folder = file.split("/")[1]
        if folder in ("__init__.py", "__main__.py"):
            continue
        allowed = FOLDERS[: FOLDERS.index(folder) + 1]
        for name in imports(file, source, in_functions=True):
            if within(name, "meg_editor") and name.count(".") > 1:
                assert name.split(".")[1] in allowed, f"{file} imports {name}"


def test_nothing_is_flat_at_the_top():
    top = {path.name for path in (ROOT / "meg_editor").iterdir() if path.name != "__pycache__"}
    assert top == {"__init__.py", "__main__.py", "py.typed", *FOLDERS}


@pytest.mark.parametrize(
    ("a", "b", "cycle"),
    [
        ("from meg_editor.b import x", "import meg_editor.a", True),
        ("from meg_editor import b", "from meg_editor.a import x", True),
        ("from . import b", "from .a import x", True),
        ("if True:\n    import meg_editor.b", "try:\n    import meg_editor.a\nfinally: ...", True),
        ("from meg_editor import __version__", "", True),  # __init__ imports a
        ("from meg_editor.b import x", "def f():\n    import meg_editor.a", False),
        ("from meg_editor.b import x", "import torch", False),
    ],
)
def test_cycles_are_found(a, b, cycle):
    init = "from meg_editor.a import y"
    files = {"meg_editor/__init__.py": init, "meg_editor/a.py": a, "meg_editor/b.py": b}
    assert bool(import_cycle(files)) == cycle


@pytest.mark.parametrize("file", SOURCES)
def test_rules_of_the_source(file):
    assert not violations(file, SOURCES[file])


@pytest.mark.parametrize(
    ("file", "code", "allowed"),
    [
        ("gates/a.py", "import torch\ntorch.save_file", True),
        ("gates/a.py", "import easyeditor", False),
        ("gates/a.py", "try:\n    from easyeditor.models import x\nfinally: ...", False),
        ("gates/a.py", "def f():\n    import easyeditor", True),
        ("integrations/easyedit/a.py", "import easyeditor", True),
        ("integrations/easyedit/__init__.py", "import easyeditor", True),
        ("a.py", "def f():\n    from meg_editor import cli", False),
        ("a.py", "from meg_editor.cli.main import main", False),
        ("__main__.py", "from meg_editor.cli.main import main", True),
        ("a.py", "def f(x):\n    assert x", False),
        ("a.py", "import torch\nx = torch.load('x')", False),
        ("a.py", "from torch import load", False),
        ("a.py", "from pickle import loads", False),
        ("a.py", "def f():\n    import pickle", False),
        ("a.py", "import numpy\nx = numpy.load('x', allow_pickle=True)", False),
        ("a.py", "\n" * (MAX_LINES - 1), True),
        ("a.py", "\n" * MAX_LINES, False),
    ],
)
def test_rules_are_enforced(file, code, allowed):
    assert (not violations(f"meg_editor/{file}", f'"""A module."""\n{code}')) == allowed
    assert "has no module docstring" in violations(f"meg_editor/{file}", f"# None.\n{code}")


def files_below(folder: Path) -> set[str]:
    """The files of a package, without caches and hidden files, relative to the folder."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        file.as_posix()
        for file in files
        if "__pycache__" not in file.parts and not any(p.startswith(".") for p in file.parts)
    }


def test_everything_is_shipped(tmp_path):
    """What setup.py packs is all of meg_editor/: modules, tables, presets, models, py.typed."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    expected = files_below(ROOT / "meg_editor")
    assert {
        "py.typed",
        "__init__.py",
        "data/world/countries.tsv",
        "config/presets/paper.yaml",
    } <= expected
    assert files_below(tmp_path / "meg_editor") == expected
