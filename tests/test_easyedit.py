"""MeG in EasyEdit: its import, the registration, and whole runs through BaseEditor.

MEG_EDITOR_EASYEDIT may name a checkout of EasyEdit; else the installed package is tested. Without
either, only what needs no EasyEdit is.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import json
import logging
import math
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

import meg_editor.integrations.easyedit as integration
from meg_editor import MeGHyperParams, TextEncoder, fit, load_model, prepare
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import calibration_requests, edit_cases, pseudo_requests
from meg_editor.fitting import encoder_stage, gate_stage
from meg_editor.fitting.tuning_facts import TuningFacts
from meg_editor.integrations.easyedit import EasyEditError, RegistrationError, register, unregister
from meg_editor.integrations.easyedit.absent import absent
from meg_editor.integrations.easyedit.importing import device_name, import_easyedit
from meg_editor.integrations.easyedit.registration import _all_or_nothing
from meg_editor.lm.answers import batched_answers, greedy_answers
from meg_editor.lm.reference import reference_encoder_path, reference_model_path
from meg_editor.lm.tokens import encode_example
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import RequestError

ROOT = Path(__file__).resolve().parents[1]
CHECKOUT = os.environ.get("MEG_EDITOR_EASYEDIT")
WAY_OUT = r"pip install --no-deps easyeditor==0\.0\.1\.dev0"
EDITOR = "class BaseEditor: ...\nclass HyperParams: ...\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: EasyEdit likes to write ./logs."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ------------------------------------------------------------------------- stand-ins


def test_stand_ins_can_be_named_subclassed_and_subscripted() -> None:
    thing = absent("nowhere.sub.Thing")

    class Child(thing): ...

    class Module(thing.part, torch.nn.Module): ...

    assert issubclass(Child, thing) and issubclass(Module, torch.nn.Module)
    assert thing[int] is thing and Child[int, str] is Child
    assert isinstance(None, thing.Other | None) and not isinstance(3, thing)
    assert not hasattr(thing, "__wrapped__") and not hasattr(thing, "__path__")
    assert thing.__name__ == "Thing" and thing.part.deep.__qualname__ == (
        "nowhere.sub.Thing.part.deep"
    )


@pytest.mark.parametrize("use", ["itself", "attribute", "child", "item"])
def test_stand_ins_tell_what_is_missing_when_they_are_called(use: str) -> None:
    thing = absent("nowhere.sub.Thing")
    child: Any = type(thing)("Child", (thing,), {})
    called = {"itself": thing, "attribute": thing.make, "child": child, "item": thing[int]}[use]
    with pytest.raises(ImportError, match=r"needs nowhere\.sub\.Thing.*install nowhere$"):
        called(1, key=2)


# ------------------------------------------------------------------------- the import


@pytest.mark.parametrize(
    ("given", "meant"),
    [("cpu", "cpu"), (0, "cuda:0"), ("1", "cuda:1"), ("cuda:1", "cuda:1"), ("cuda", "cuda")],
)
def test_device_name(given: Any, meant: str) -> None:
    assert device_name(given) == meant
    assert device_name(torch.device(meant)) == meant


@contextmanager
def without_easyedit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process which has not imported EasyEdit; what is imported within is forgotten."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
            patch.delitem(sys.modules, name)
        others = [
            f
            for f in sys.meta_path
            if type(f).__module__ != "meg_editor.integrations.easyedit.importing"
        ]
        patch.setattr(sys, "meta_path", others)
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
                del sys.modules[name]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """fake(__init__=source, **modules) puts a package `easyeditor` of that source on the path."""

    def write(__init__: str = EDITOR, **modules: str) -> Path:
        folder = tmp_path / "fake" / "easyeditor"
        folder.mkdir(parents=True)
        for name, source in {"__init__": __init__, **modules}.items():
            (folder / f"{name}.py").write_text(source, "utf-8")
        importlib.invalidate_caches()
        return folder

    with without_easyedit(monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path / "fake"))
        yield write


def imported(fake: Callable[..., Path], source: str, **modules: str) -> Any:
    """The module easyeditor.probe of that source, imported as part of EasyEdit."""
    fake(probe=source, **modules)
    import_easyedit()
    return importlib.import_module("easyeditor.probe")


def test_failing_imports_bind_stand_ins(fake: Any) -> None:
    probe = imported(
        fake,
        '"""Text."""\n'
        "from __future__ import annotations\n"
        "import os, no_such_package, xml.dom.minidom as dom\n"
        "import os.path\n"
        "import no_such_package.deep.module as deep\n"
        "from no_such_package.sub import thing, other as renamed\n"
        "from collections import NoSuchName, OrderedDict\n"
        "from no_such_package import *\n"
        "from math import *\n"
        "class Child(thing):\n"
        "    item: thing[NoName]\n"
        "def lazily():\n"
        "    import no_such_module\n"
        "    return no_such_module\n",
    )
    assert probe.__doc__ == "Text." and probe.os is os and probe.OrderedDict is OrderedDict
    assert probe.dom is importlib.import_module("xml.dom.minidom") and probe.pi == math.pi
    for called, named in [
        (probe.no_such_package, "no_such_package"),
        (probe.no_such_package.function, "no_such_package.function"),
        (probe.deep, "no_such_package.deep.module"),
        (probe.Child, "no_such_package.sub.thing"),
        (probe.renamed, "no_such_package.sub.other"),
        (probe.NoSuchName, "collections.NoSuchName"),
        (probe.lazily(), "no_such_module"),
    ]:
        with pytest.raises(ImportError, match=f"needs {named}, .*install {named.split('.')[0]}$"):
            called()


def test_imports_which_look_after_themselves_are_left_alone(fake: Any) -> None:
    probe = imported(
        fake,
        "try:\n"
        "    import no_such_package\n"
        "    found = True\n"
        "except ImportError:\n"
        "    found = False\n"
        "from .sibling import value\n"
        "from . import sibling as other\n",
        sibling="value = 5\n",
        half="from .sibling import nothing\n",
        none="from .nowhere import nothing\n",
    )
    assert probe.found is False and probe.value == 5 and probe.other.value == 5
    for name in ("half", "none"):
        with pytest.raises(ImportError, match="nothing|nowhere"):
            importlib.import_module(f"easyeditor.{name}")


def test_device_strings_understand_names(fake: Any) -> None:
    probe = imported(
        fake,
        "def device(x):\n    return f'cuda:{x}'\n"
        "def attribute(x):\n    return f'cuda:{x.device}'\n"
        "def tried(x):\n"
        "    try:\n        return f'cuda:{x}'\n    finally:\n        pass\n"
        "def others(x):\n    return [f'cuda:{x}!', f'{x}:cuda', f'on cuda:{x}', f'{x}']\n",
    )
    for x, meant in [("cpu", "cpu"), (0, "cuda:0"), ("1", "cuda:1"), ("cuda:1", "cuda:1")]:
        assert probe.device(x) == probe.tried(x) == meant
        assert probe.attribute(SimpleNamespace(device=x)) == meant
    assert probe.others("cpu") == ["cuda:cpu!", "cpu:cuda", "on cuda:cpu", "cpu"]


def test_the_process_is_left_as_it_was(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    monkeypatch.setenv("MEG_TEST_VARIABLE", "mine")
    fake(
        "import logging, os, random\n"
        "import numpy as np, torch\n"
        "os.environ['CUDA_LAUNCH_BLOCKING'] = '1'\n"
        "os.environ['MEG_TEST_VARIABLE'] = 'theirs'\n"
        "random.seed(42), np.random.seed(42), torch.manual_seed(42)\n"
        "logging.getLogger().addHandler(logging.NullHandler())\n"
        "logging.getLogger().setLevel(1)\n" + EDITOR
    )
    root = logging.getLogger()
    before = process_state()
    handlers, level = list(root.handlers), root.level
    assert import_easyedit() is sys.modules["easyeditor"]
    assert process_state() == before
    assert root.handlers == handlers and root.level == level
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
    assert os.environ["MEG_TEST_VARIABLE"] == "mine"


def process_state() -> dict[str, str]:
    numbers = np.random.get_state(legacy=True)
    return {
        "environment": str(sorted(os.environ.items())),
        "random": str(random.getstate()),
        "numpy": str([getattr(part, "tolist", lambda p=part: p)() for part in numbers]),
        "torch": str(torch.get_rng_state().tolist()),
    }


@pytest.mark.parametrize("way", ["module", "path"])
def test_a_missing_easyedit_is_named(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_easyedit(monkeypatch):
        if way == "module":
            monkeypatch.setitem(sys.modules, "easyeditor", None)
        else:
            monkeypatch.setattr(sys, "path", [])
        finders = list(sys.meta_path)
        for ask in (import_easyedit, register, lambda: integration.BaseEditor):
            with pytest.raises(EasyEditError, match=f"not installed: .*{WAY_OUT}"):
                ask()
        unregister()
        assert sys.meta_path == finders


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", r"easyeditor at .*__init__\.py has no BaseEditor and no HyperParams: .*too old"),
        ("class BaseEditor: ...", r"has no HyperParams: .*too old"),
        ("raise RuntimeError('broken')", r"cannot be imported \(RuntimeError: broken\)"),
        ("from . import nothing", r"cannot be imported \(ImportError: .*nothing"),
        ("def (", r"cannot be imported \(SyntaxError: "),
        ("import sys\nsys.exit(3)", r"cannot be imported \(SystemExit: 3\)"),
    ],
)
def test_a_broken_or_old_easyedit_is_reported_and_forgotten(
    fake: Any, source: str, words: str
) -> None:
    fake("import easyeditor.part\n" + source, part="")
    finders, modules = list(sys.meta_path), set(sys.modules)
    for _ in range(2):
        with pytest.raises(EasyEditError, match=f"(?s){words}.*{WAY_OUT}"):
            import_easyedit()
        assert sys.meta_path == finders and set(sys.modules) == modules


def test_an_interrupted_import_is_forgotten(fake: Any) -> None:
    fake("raise KeyboardInterrupt")
    finders = list(sys.meta_path)
    with pytest.raises(KeyboardInterrupt):
        import_easyedit()
    assert sys.meta_path == finders and "easyeditor" not in sys.modules


def test_unregistering_imports_nothing(fake: Any) -> None:
    fake("raise RuntimeError('imported')")
    unregister()
    assert "easyeditor" not in sys.modules


def test_the_package_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editor'"):
        _ = integration.Editor


# --------------------------------------------------------------- EasyEdit as it is


@pytest.fixture(scope="module")
def easyedit() -> Iterator[ModuleType]:
    """EasyEdit, imported by our import. It is left without MeG."""
    if CHECKOUT:
        sys.path.insert(0, CHECKOUT)
    try:
        if importlib.util.find_spec("easyeditor") is None:
            pytest.skip("no EasyEdit: it is not installed, nor named by MEG_EDITOR_EASYEDIT")
        package = import_easyedit()
    finally:
        if CHECKOUT:
            sys.path.remove(CHECKOUT)
    yield package
    unregister()


def part(name: str) -> Any:
    return importlib.import_module(f"easyeditor.{name}")


def methods() -> dict[str, Any]:
    table: dict[str, Any] = part("util.alg_dict").ALG_DICT
    return table


@pytest.fixture
def unregistered(easyedit: ModuleType) -> Iterator[ModuleType]:
    """EasyEdit without MeG, for this test alone."""
    before = "MeG" in methods()
    unregister()
    yield easyedit
    unregister()
    if before:
        register()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    result = (path for path in folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in result}


def test_importing_easyedit_leaves_no_trace(
    easyedit: ModuleType, tmp_path: Path, elsewhere: Path
) -> None:
    source = Path(str(easyedit.__file__)).parent
    copied = tmp_path / "copy" / "easyeditor"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    before = files_of(copied)
    script = (
        "import json, logging, os, random, sys\n"
        "import numpy as np, torch\n"
        "import meg_editor.integrations.easyedit\n"
        "alone = [n for n in sys.modules if n.partition('.')[0] == 'easyeditor']\n"
        "for seed in (random.seed, np.random.seed, torch.manual_seed): seed(7)\n"
        f"{inspect.getsource(process_state)}\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    here = dict(log=str((root.handlers, root.level)), cwd=os.getcwd())\n"
        "    return dict(process_state(), **here)\n"
        "before = state()\n"
        "package = meg_editor.integrations.easyedit.import_easyedit()\n"
        "changed = [name for name, value in state().items() if value != before[name]]\n"
        "found = dict(alone=alone, changed=changed, file=package.__file__)\n"
        "print(json.dumps(found | {'blocking': os.environ.get('CUDA_LAUNCH_BLOCKING')}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copied.parent), str(ROOT)])}
    for name in ("CUDA_LAUNCH_BLOCKING", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        environment.pop(name, None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {
        "alone": [],
        "changed": [],
        "file": str(copied / "__init__.py"),
        "blocking": None,
    }
    assert files_of(copied) == before
    assert list(elsewhere.iterdir()) == []


def attributes() -> dict[tuple[str, str], Any]:
    """Every attribute of EasyEdit's modules, of its editors, and its table of methods."""
    owners: dict[str, Any] = {
        name: module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "easyeditor"
    }
    owners["BaseEditor"] = part("editors.editor").BaseEditor
    owners["BatchEditor"] = part("editors.batch_editor").BatchEditor
    result = {(owner, k): v for owner, o in owners.items() for k, v in vars(o).items()}
    return {**result, **{("ALG_DICT", name): method for name, method in methods().items()}}


def different(before: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    now = attributes()
    return {key for key in before | now if before.get(key) is not now.get(key)}


def test_registration_is_undone_to_the_last_object(unregistered: ModuleType) -> None:
    before = attributes()
    assert register() is unregistered
    changed = different(before)
    assert {
        ("ALG_DICT", "MeG"),
        ("BaseEditor", "__init__"),
        ("BatchEditor", "is_batchable_method"),
        ("easyeditor.evaluate.evaluate", "test_prediction_acc"),
    } <= changed
    assert {owner for owner, _ in changed} <= {
        "ALG_DICT",
        "BaseEditor",
        "BatchEditor",
        "easyeditor.editors.editor",
        "easyeditor.evaluate.evaluate",
        "easyeditor.evaluate.portability_evaluate",
    }
    assert {name for owner, name in changed if owner == "ALG_DICT"} == {"MeG"}
    once = attributes()
    assert register() is unregistered and not different(once)
    unregister()
    assert not different(before)
    unregister()
    assert not different(before)


def test_registration_adds_one_batchable_method(unregistered: ModuleType) -> None:
    batch_editor = part("editors.batch_editor").BatchEditor
    names = [*methods(), "no such method"]
    before = {name: batch_editor.is_batchable_method(name) for name in names}
    assert not batch_editor.is_batchable_method("MeG")
    register()
    assert batch_editor.is_batchable_method("MeG")
    assert {name: batch_editor.is_batchable_method(name) for name in names} == before


def test_a_foreign_meg_is_left_alone(
    unregistered: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods(), "MeG", len)
    before = attributes()
    with pytest.raises(RegistrationError, match=r"another 'MeG' already: <built-in function len>"):
        register()
    assert not different(before)
    unregister()
    assert not different(before) and methods()["MeG"] is len


def test_a_failed_registration_changes_nothing(
    unregistered: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(part("editors.editor").BaseEditor, "batch_edit")
    before = attributes()
    with pytest.raises(AttributeError, match="batch_edit"):
        register()
    assert not different(before)


def test_asking_for_the_editor_registers(unregistered: ModuleType) -> None:
    assert "MeG" not in methods()
    from meg_editor.integrations.easyedit import BaseEditor

    assert BaseEditor is unregistered.BaseEditor is part("editors.editor").BaseEditor
    assert "MeG" in methods()


def test_other_methods_take_the_unchanged_path(
    unregistered: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    editor = part("editors.editor").BaseEditor
    for name in ("__init__", "edit", "edit_requests", "batch_edit"):
        # As many names as it has: the registration looks at them.
        @functools.wraps(getattr(editor, name))
        def record(*args: Any, _name: str = name, **kwargs: Any) -> str | None:
            calls.append((_name, args[1:], kwargs))
            return None if _name == "__init__" else "result"

        monkeypatch.setattr(editor, name, record)
    register()
    other = SimpleNamespace(alg_name="FT", model_name="x")
    built = editor.from_hparams(other)
    built.alg_name = "FT"
    options = {"sequential_edit": True, "locality_inputs": {}, "unknown": 1}
    assert built.edit("a", "b", None, **options) == "result"
    assert built.edit_requests([1], **options) == "result"
    assert built.batch_edit(["a"], ["b", "c"], ["d"], **options) == "result"
    assert calls == [
        ("__init__", (other,), {}),
        ("edit", ("a", "b", None), options),
        ("edit_requests", ([1],), options),
        ("batch_edit", (["a"], ["b", "c"], ["d"]), options),
    ]


# ------------------------------------------------------------------- whole runs


def hparams(**changes: Any) -> MeGHyperParams:
    """The reference model with quick settings: no calibration, stored neurons."""
    quick = {"generator": "bank", "gate_threshold": 0.75, "batch_size": 3, "device": "cpu"}
    return MeGHyperParams.preset("default", **{**quick, **changes})


@functools.cache
def cases(seed: int = 0) -> list[EvaluationCase]:
    return edit_cases(load_world(), 128, seed)


def fields(chosen: Sequence[EvaluationCase]) -> dict[str, list[Any]]:
    """The arguments of `edit` and `batch_edit` for some cases."""
    return {
        "prompts": [case.request.prompt for case in chosen],
        "target_new": [case.request.target_new for case in chosen],
        "ground_truth": [case.truth for case in chosen],
        "rephrase_prompts": [case.paraphrases[0] for case in chosen],
        "subject": [case.request.subject for case in chosen],
    }


def neighbours(model: Any, tok: Any, chosen: Sequence[EvaluationCase]) -> dict[str, Any]:
    """One locality prompt per case, and what the unedited model says."""
    kinds = [case.locality for case in chosen]
    prompts = [(kind.get("same_relation") or kind["unrelated"])[0].prompt for kind in kinds]
    return {"nb": {"prompt": prompts, "ground_truth": batched_answers(model, tok, prompts, 12)}}


def mean(metrics: Sequence[Any], name: str, phase: str = "post") -> float:
    return float(np.mean([np.mean(row[phase][name]) for row in metrics]))


def outputs(metrics: Sequence[Any], phase: str) -> list[list[list[int]]]:
    return [[list(row) for row in entry[phase]["locality"]["nb_output"]] for entry in metrics]


def ft_hparams(easyedit: ModuleType, folder: Path, **changes: Any) -> Any:
    """EasyEdit's FT on the reference model, from a YAML file."""
    values = {
        "alg_name": "FT",
        "model_name": str(reference_model_path()),
        "device": "cpu",
        "layers": [2],
        "num_steps": 40,
        "batch_size": 4,
        "max_length": 40,
        "lr": 2e-3,
        "weight_decay": 0,
        "kl_factor": 0,
        "norm_constraint": False,
        "objective_optimization": "target_new",
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
        **changes,
    }
    known = {field.name for field in dataclasses.fields(easyedit.FTHyperParams)}
    path = folder / "ft.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k in known}), "utf-8")
    return easyedit.FTHyperParams.from_hparams(str(path))


def test_another_method_gives_the_same_with_and_without_meg(
    unregistered: ModuleType, tmp_path: Path
) -> None:
    def fine_tuned() -> Any:
        editor = unregistered.BaseEditor.from_hparams(ft_hparams(unregistered, tmp_path))
        local = neighbours(editor.model, editor.tok, cases()[:3])["nb"]
        names = list(inspect.signature(editor.batch_edit).parameters)
        name = "locality_inputs" if "locality_inputs" in names else "locality_prompts"
        result, model, _ = editor.batch_edit(
            **fields(cases()[:3]), **{name: {"nb": local}}, verbose=False
        )
        weight = model.model.layers[2].mlp.down_proj.weight
        return [(row["pre"], row["post"]) for row in result], weight.detach().clone()

    metrics, weight = fine_tuned()
    register()
    again, same_weight = fine_tuned()
    assert again == metrics and torch.equal(weight, same_weight)


@contextmanager
def spied_routes() -> Iterator[list[list[str]]]:
    """The queries of every routing within the block."""
    calls: list[list[str]] = []
    real = MeGModel.route

    def route(self: MeGModel, queries: str | Sequence[str]) -> Any:
        calls.append([queries] if isinstance(queries, str) else list(queries))
        return real(self, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeGModel, "route", route)
        yield calls


@pytest.fixture(scope="module")
def registered(easyedit: ModuleType) -> ModuleType:
    return register()


@pytest.fixture(scope="module")
def batch(registered: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """128 facts in one chunk, the gate calibrated and the generator trained."""
    folder = tmp_path_factory.mktemp("batch")
    settings = MeGHyperParams.preset("default", device="cpu", batch_size=128, encoder_steps=40)
    with pytest.MonkeyPatch.context() as patch, spied_routes() as routes:
        patch.chdir(folder)
        editor = registered.BaseEditor.from_hparams(settings)
        local = neighbours(editor.model, editor.tok, cases(1))
        inputs = fields(cases(1))
        metrics, model, weights = editor.batch_edit(
            **copy.deepcopy(inputs), locality_inputs=copy.deepcopy(local), verbose=False
        )
    return SimpleNamespace(
        editor=editor,
        metrics=metrics,
        model=model,
        weights=weights,
        routes=routes,
        inputs=inputs,
        local=local["nb"],
        written=list(folder.iterdir()),
    )


def test_a_batch_is_edited_and_evaluated(batch: SimpleNamespace) -> None:
    assert len(batch.metrics) == 128 and batch.weights == {} and batch.written == []
    assert isinstance(batch.model, MeGModel) and len(batch.model.edits) == 128
    assert mean(batch.metrics, "rewrite_acc", "pre") < 0.2
    assert mean(batch.metrics, "rephrase_acc", "pre") < 0.2
    assert mean(batch.metrics, "rewrite_acc") >= 0.99
    assert mean(batch.metrics, "rephrase_acc") >= 0.95
    before, after = outputs(batch.metrics, "pre"), outputs(batch.metrics, "post")
    same = [ours == theirs for ours, theirs in zip(before, after, strict=True)]
    assert np.mean(same) >= 0.97
    assert all(len(rows) == 1 and rows[0] for rows in before)
    for row, case in zip(batch.metrics, cases(1), strict=True):
        assert row["requested_rewrite"]["prompt"] == case.request.prompt


def test_the_base_keeps_every_bit(batch: SimpleNamespace) -> None:
    assert batch.editor.model is batch.model.base
    fresh, _ = load_model(hparams())
    ours = batch.editor.model.state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(ours[name], value), name


def test_evaluation_is_routed_on_the_prompt_alone(batch: SimpleNamespace) -> None:
    queries = [*batch.inputs["prompts"], *batch.inputs["rephrase_prompts"], *batch.local["prompt"]]
    assert sorted(batch.routes) == sorted([prompt] for prompt in queries)


def test_the_edited_model_generates(batch: SimpleNamespace) -> None:
    tok, prompts = batch.editor.tok, batch.inputs["prompts"][:5]
    inputs = tok(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = batch.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    texts = tok.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == batch.inputs["target_new"][:5]
    plain = greedy_answers(batch.editor.model, tok, prompts, 12)
    assert plain == batch.inputs["ground_truth"][:5]


def test_the_edited_model_is_saved_and_answers_the_same(
    batch: SimpleNamespace, tmp_path: Path
) -> None:
    batch.model.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", device="cpu")
    for queries in (
        batch.inputs["prompts"],
        batch.inputs["rephrase_prompts"],
        batch.local["prompt"],
    ):
        assert loaded.answer(queries, 12) == batch.model.answer(queries, 12)
    assert loaded.answer(batch.inputs["prompts"], 12) == batch.inputs["target_new"]


@pytest.mark.parametrize("phase", ["pre", "post"])
def test_easyedits_accuracies_are_ours(
    batch: SimpleNamespace, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EasyEdit counts no end of text: with n target tokens, (n + 1) TF = n acc + (0 or 1)."""
    ours = importlib.import_module("meg_editor.evaluation.evaluate")
    count = 48  # the first edits
    few = [
        dataclasses.replace(case, paraphrases=case.paraphrases[:1], locality={}, portability={})
        for case in cases(1)[:count]
    ]
    metrics, tok = batch.metrics[:count], batch.editor.tok
    model = batch.model if phase == "post" else batch.editor.model
    theirs = [float(np.mean(row[phase]["rewrite_acc"])) for row in metrics]
    theirs_rephrased = [float(np.mean(row[phase]["rephrase_acc"])) for row in metrics]

    shares = ours.evaluate(model, tok, few).answers.token_accuracy
    for index, case in enumerate(few):
        target = case.request.target_new
        for prompt, share, acc in [
            (case.request.prompt, shares[2 * index], theirs[index]),
            (case.paraphrases[0], shares[2 * index + 1], theirs_rephrased[index]),
        ]:
            n = len(encode_example(tok, prompt, target, end=False).target)
            end = (n + 1) * share - n * acc
            assert min(abs(end), abs(end - 1)) < 1e-6

    monkeypatch.setattr(ours, "encode_example", functools.partial(encode_example, end=False))
    scores = ours.evaluate(model, tok, few).scores
    assert scores.reliability.tf / 100 == pytest.approx(np.mean(theirs), abs=1e-6)
    assert scores.generality.tf / 100 == pytest.approx(np.mean(theirs_rephrased), abs=1e-6)


def test_a_sequence_of_chunks_is_one_model(registered: ModuleType) -> None:
    chosen = cases()[:7]
    editor = registered.BaseEditor.from_hparams(hparams())
    base, inputs = editor.model, fields(chosen)
    local = neighbours(base, editor.tok, chosen)
    metrics, model, weights = editor.batch_edit(
        **inputs, locality_inputs=local, sequential_edit=True, verbose=False
    )
    assert weights == {} and isinstance(model, MeGModel)
    assert editor.model is model and model.base is base
    assert [edit.prompt for edit in model.edits] == inputs["prompts"]
    prompts = [row["requested_rewrite"]["prompt"] for row in metrics]
    assert prompts == inputs["prompts"]  # those of all chunks, not of the last one alone
    assert mean(metrics, "rewrite_acc") == mean(metrics, "rephrase_acc") == 1
    assert mean(metrics, "rewrite_acc", "pre") < 0.2
    assert outputs(metrics, "post") == outputs(metrics, "pre")
    assert model.answer(inputs["prompts"], 12) == inputs["target_new"]
    assert model.answer(inputs["rephrase_prompts"], 12) == inputs["target_new"]

    answers = (chosen[0].truth, chosen[0].request.target_new)
    same_kind = next(result for result in load_world().answers.values() if answers[1] in result)
    again = next(answer for answer in same_kind if answer not in answers)
    metrics, later, _ = editor.batch_edit(
        inputs["prompts"][:1], [again], sequential_edit=True, verbose=False
    )
    assert mean(metrics, "rewrite_acc") == 1 and mean(metrics, "rewrite_acc", "pre") < 1
    assert later.base is base and len(later.edits) == 7
    assert later.answer(inputs["prompts"], 12) == [again, *inputs["target_new"][1:]]


def test_chunks_which_are_no_sequence_leave_the_last_one(registered: ModuleType) -> None:
    inputs = fields(cases()[:4])
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=2))
    base = editor.model
    metrics, model, _ = editor.batch_edit(**inputs, verbose=False)
    assert [row["requested_rewrite"]["prompt"] for row in metrics] == inputs["prompts"]
    assert mean(metrics, "rewrite_acc") == 1
    assert editor.model is base and model.base is base
    assert [edit.prompt for edit in model.edits] == inputs["prompts"][2:]
    assert model.answer(inputs["prompts"], 12) == [
        *inputs["ground_truth"][:2],
        *inputs["target_new"][2:],
    ]


@pytest.mark.parametrize("sequential", [False, True])
def test_facts_are_edited_one_by_one(
    registered: ModuleType, sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []

    def counted(base: Any, tok: Any, facts: Any, *rest: Any, **options: Any) -> Any:
        fits.append(len(facts))
        return fit(base, tok, facts, *rest, **options)

    monkeypatch.setattr("meg_editor.fitting.apply.fit", counted)
    inputs = fields(cases()[:3])
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=3))
    base, apply = editor.model, editor.apply_algo
    local = neighbours(base, editor.tok, cases()[:3])
    options = {"sequential_edit": True} if sequential else {}
    metrics, model, weights = editor.edit(**inputs, locality_inputs=local, verbose=False, **options)
    assert len(metrics) == 3 and weights == {}
    assert mean(metrics, "rewrite_acc") == mean(metrics, "rephrase_acc") == 1
    assert mean(metrics, "rewrite_acc", "pre") == 0
    assert [row["post"]["locality"]["nb_acc"] for row in metrics] == [[1.0]] * 3
    assert model.base is base and editor.apply_algo is apply
    assert fits == ([1] if sequential else [1, 1, 1])  # later ones are added
    assert [e.prompt for e in model.edits] == inputs["prompts"][0 if sequential else 2 :]
    assert editor.model is (model if sequential else base)
    expected = inputs["target_new"]
    if not sequential:
        expected = [*inputs["ground_truth"][:2], expected[2]]
    assert model.answer(inputs["prompts"], 12) == expected


def test_records_share_what_takes_longer_to_load_than_to_edit(
    registered: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And take up what `prepare` made for the model."""
    calls: list[str] = []
    few = [TuningFacts(requests(count=12)) for requests in (pseudo_requests, calibration_requests)]
    load = TextEncoder.from_pretrained

    def facts() -> Any:
        calls.append("facts")
        return few

    def encoder(name: str) -> TextEncoder:
        calls.append(name)
        return load(name)

    for place in ("fitting.context", "integrations.easyedit.registration"):
        monkeypatch.setattr(f"meg_editor.{place}.standard_facts", facts)
    settings = hparams(gate_threshold=None, encoder_steps=1)
    pair = load_model(settings)
    prepare(*pair, settings)
    monkeypatch.setattr(encoder_stage, "tune_encoder", lambda *_, **__: pytest.fail("tuned"))
    monkeypatch.setattr(gate_stage, "calibrate_on_held_out", lambda *_: pytest.fail("calibrated"))
    monkeypatch.setattr(TextEncoder, "from_pretrained", encoder)
    calls.clear()
    editor = registered.BaseEditor.from_hparams(settings)
    inputs = fields(cases()[:3])
    editor.edit(**inputs, verbose=False)
    _, model, _ = editor.batch_edit(**inputs, verbose=False)
    path = str(reference_encoder_path())
    assert calls == ["facts", path]
    assert model.answer(inputs["prompts"], 12) == inputs["target_new"]
    other = shutil.copytree(path, tmp_path / "encoder")
    editor.hparams.encoder_name = str(other)
    editor.edit(**fields(cases()[:1]), verbose=False)
    assert calls == ["facts", path, str(other)]


@pytest.mark.parametrize(("size", "options", "warned"), [
    (2, {}, True), (3, {}, False), (2, {"sequential_edit": True}, False),
])  # fmt: skip
def test_it_is_said_that_the_model_has_the_last_batch(
    registered: ModuleType, size: int, options: dict[str, Any], warned: bool, caplog: Any
) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=size))
    editor.batch_edit(**fields(cases()[:3]), verbose=False, **options)
    assert ("has the last 1 of 3 edits" in caplog.text) is warned


def test_prepared_requests_are_edited_in_sequence(registered: ModuleType) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=3))
    requests = [
        {
            "prompt": case.request.prompt,
            "target_new": case.request.target_new,
            "ground_truth": case.truth,
            "portability": {},
            "locality": {},
        }
        for case in cases()[:2]
    ]
    metrics, model, _ = editor.edit_requests(requests, sequential_edit=True, verbose=False)
    assert mean(metrics, "rewrite_acc") == 1 and len(model.edits) == 2
    assert editor.model is model


def test_a_failed_sequence_leaves_the_editor_as_it_was(registered: ModuleType) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=3))
    base, apply, inputs = editor.model, editor.apply_algo, fields(cases()[:2])

    def flaky(model: Any, tok: Any, requests: Any, *rest: Any, **options: Any) -> Any:
        if requests[0]["prompt"] == inputs["prompts"][1]:
            raise FloatingPointError("no neuron")
        return apply(model, tok, requests, *rest, **options)

    editor.apply_algo = flaky
    with pytest.raises(FloatingPointError, match="no neuron"):
        editor.edit(**inputs, sequential_edit=True, verbose=False)
    assert editor.model is base and editor.apply_algo is flaky


def test_a_failed_batch_leaves_the_editor_as_it_was(registered: ModuleType) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=2))
    base, inputs = editor.model, fields(cases()[:3])
    wrong = {**inputs, "target_new": [*inputs["target_new"][:2], ""]}
    for edit in (editor.batch_edit, editor.edit):
        with pytest.raises(RequestError, match="request 2: field 'target_new' is empty"):
            edit(**wrong, sequential_edit=True, verbose=False)
    apply = editor.apply_algo

    def flaky(model: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(model, MeGModel):
            raise ArithmeticError("no neuron")
        return apply(model, *rest, **options)

    editor.apply_algo = flaky
    with pytest.raises(ArithmeticError):
        editor.batch_edit(**inputs, sequential_edit=True, verbose=False)
    assert editor.model is base
    editor.apply_algo = apply
    metrics, edited, _ = editor.batch_edit(**inputs, sequential_edit=True, verbose=False)
    assert len(metrics) == len(edited.edits) == 3


def test_a_batch_that_easyedit_cuts_fails_as_a_whole() -> None:
    """Current EasyEdit replaces the editor's model after every chunk itself."""

    class Editor:
        model, hparams = "base", SimpleNamespace(batch_size=1)

        def batch_edit(self, prompts: list[str], sequential_edit: bool = False) -> None:
            self.model = "half edited"
            raise KeyboardInterrupt

    editor = Editor()
    with pytest.raises(KeyboardInterrupt):
        _all_or_nothing(Editor.batch_edit)(editor, ["a", "b"], sequential_edit=True)
    assert editor.model == "base"


def test_columns_of_any_kind_and_blanks_around_texts(registered: ModuleType) -> None:
    """A series was one chunk, and " Lima" was scored as no answer."""
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=2))
    base = editor.model
    inputs = {name: fields(cases()[:3])[name] for name in ("prompts", "target_new", "ground_truth")}
    blank = (
        [f"{text} " for text in inputs["prompts"]],
        [f" {text}" for text in inputs["target_new"]],
    )
    columns: list[dict[str, Any]] = [
        {name: np.array(texts) for name, texts in inputs.items()},
        {name: tuple(texts) for name, texts in inputs.items()},
        {"prompts": blank[0], "target_new": blank[1], "subject": [None] * 3},
    ]
    for given in columns:
        editor.model = base
        metrics, edited, _ = editor.batch_edit(**given, sequential_edit=True, verbose=False)
        assert mean(metrics, "rewrite_acc") == 1
        assert edited.answer(inputs["prompts"], 12) == inputs["target_new"]
    editor.model = base
    metrics, _, _ = editor.edit(**columns[0], verbose=False)
    assert [row["post"]["rewrite_acc"] for row in metrics] == [[1.0]] * 3
    with pytest.raises(ValueError, match="expected a list of prompts, got text.*edit"):
        editor.batch_edit("abcd", "Lima", verbose=False)


def test_answers_before_are_those_of_evaluation_mode(registered: ModuleType) -> None:
    model, tok = load_model(hparams())
    settings = hparams()
    pair: Any = (model.train(), tok)
    settings.model_name = pair
    editor = registered.BaseEditor.from_hparams(settings)
    assert not any(module.training for module in editor.model.modules())


def test_several_prompts_per_fact(registered: ModuleType) -> None:
    chosen = [case for case in cases() if case.portability][:2]
    inputs = fields(chosen)
    editor = registered.BaseEditor.from_hparams(hparams())
    prompts = [[p.prompt for kind in case.locality.values() for p in kind] for case in chosen]
    answers = [batched_answers(editor.model, editor.tok, group, 12) for group in prompts]
    hops = [[hop.prompt for hop in case.portability["two_hop"]] for case in chosen]
    countries = [[hop.answers[0] for hop in case.portability["two_hop"]] for case in chosen]
    assert min(map(len, [*prompts, *hops])) > 1
    with spied_routes() as routes:
        metrics, _, _ = editor.batch_edit(
            **inputs,
            locality_inputs={"nb": {"prompt": prompts, "ground_truth": answers}},
            portability_inputs={"hop": {"prompt": hops, "ground_truth": countries}},
            verbose=False,
        )
    assert outputs(metrics, "post") == outputs(metrics, "pre")
    assert [len(rows) for rows in outputs(metrics, "pre")] == [len(group) for group in prompts]
    for row, group in zip(metrics, hops, strict=True):
        accuracies = row["post"]["portability"]["hop_acc"]
        assert len(accuracies) == len(group) and all(0 <= acc <= 1 for acc in accuracies)
    single = [[text] for text in inputs["prompts"] + inputs["rephrase_prompts"]]
    assert sorted(routes) == sorted([*single, *prompts, *hops])


def test_a_pair_of_model_and_tokenizer(registered: ModuleType, elsewhere: Path) -> None:
    model, tok = load_model(hparams())
    tok.pad_token, tok.padding_side = None, "right"
    settings = hparams(device="auto") if not torch.cuda.is_available() else hparams()
    pair: Any = (model, tok)
    settings.model_name = pair
    editor = registered.BaseEditor.from_hparams(settings)
    assert editor.model is model and editor.tok is tok and settings.model_name is pair
    assert (tok.pad_token, tok.padding_side) == (tok.eos_token, "left")
    assert editor.model_name == str(reference_model_path()) and settings.device == "cpu"
    metrics, edited, _ = editor.batch_edit(**fields(cases()[:2]), verbose=False)
    assert mean(metrics, "rewrite_acc") == mean(metrics, "rephrase_acc") == 1
    assert edited.base is model and edited.hparams.model_name == editor.model_name
    assert list(elsewhere.iterdir()) == []

    further = hparams()
    further.model_name = (edited, tok)
    metrics, both, _ = registered.BaseEditor.from_hparams(further).batch_edit(
        **fields(cases()[2:3]), verbose=False
    )
    assert both.base is model and len(both.edits) == 3
    assert both.answer(fields(cases()[:3])["prompts"], 12) == fields(cases()[:3])["target_new"]


def test_a_model_in_parallel_on_the_cpu(registered: ModuleType) -> None:
    if torch.cuda.is_available():
        pytest.skip("device_map='auto' takes the GPU")
    settings = hparams(model_parallel=True)
    editor = registered.BaseEditor.from_hparams(settings)
    assert settings.model_parallel is True and settings.device == "cpu"
    metrics, _, _ = editor.batch_edit(**fields(cases()[:1]), verbose=False)
    assert mean(metrics, "rewrite_acc") == 1
    registered.BaseEditor.from_hparams(settings)  # the same settings serve twice


def test_unequal_lists_are_refused(registered: ModuleType) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=3))
    with pytest.raises((AssertionError, ValueError)):
        editor.batch_edit(["a"], ["b", "c"], verbose=False)


def test_the_prompt_template_is_put_around_before_and_after(registered: ModuleType) -> None:
    settings = hparams(prompt_template="User: {}\nAssistant:")
    editor = registered.BaseEditor.from_hparams(settings)
    base, tok, case = editor.model, editor.tok, cases()[1]
    fed: list[str] = []
    module = base.get_input_embeddings()
    handle = module.register_forward_pre_hook(
        lambda _, args: fed.extend(tok.batch_decode(args[0], skip_special_tokens=True))
    )
    inputs = fields([case])
    with spied_routes() as routes:
        metrics, _, _ = editor.batch_edit(**inputs, verbose=False)
    handle.remove()
    assert mean(metrics, "rewrite_acc") == 1 and mean(metrics, "rewrite_acc", "pre") < 1
    prompt, target = case.request.prompt, case.request.target_new
    assert routes == [[prompt], [case.paraphrases[0]]]
    texts = [" ".join(text.split()) for text in fed]  # decoding adds blanks to the line's end
    texts = [text for text in texts if prompt in text and text.endswith(target)]
    whole = f"User: {prompt} Assistant: {target}"
    assert texts.count(whole) >= 2 and all(text.endswith(whole) for text in texts)


@pytest.mark.parametrize("kind", ["generate-text", "LLM-judge"])
def test_free_answers_in_chat_turns(registered: ModuleType, kind: str) -> None:
    if not hasattr(part("evaluate.evaluate_utils"), "generate_texts"):
        pytest.skip("this EasyEdit has no evaluation_type")
    editor = registered.BaseEditor.from_hparams(hparams(evaluation_type=kind))
    assert editor.tok.chat_template
    chosen = cases()[:2]
    inputs = fields(chosen)
    local = neighbours(editor.model, editor.tok, chosen)
    metrics, _, _ = editor.batch_edit(**inputs, locality_inputs=local, verbose=False)
    answers = {
        phase: [row[phase]["rewrite_gen_content"][0].strip() for row in metrics]
        for phase in ("pre", "post")
    }
    assert answers == {"pre": inputs["ground_truth"], "post": inputs["target_new"]}
    rephrased = [row["post"]["rephrase_gen_content"][0].strip() for row in metrics]
    assert rephrased == inputs["target_new"]
    for row in metrics:
        key = "nb_gen_content"
        assert row["post"]["locality"][key] == row["pre"]["locality"][key] != [""]
    if kind == "LLM-judge":  # without an api_key: exact match
        assert [row["post"]["rewrite_acc"] for row in metrics] == [[1.0]] * 2
        assert [row["pre"]["rewrite_acc"] for row in metrics] == [[0.0]] * 2


def test_fluency_is_that_of_the_edited_answer(
    registered: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def word_tokenize(text: str) -> list[str]:
        texts.append(text)
        return text.split()

    def ngrams(tokens: list[str], n: int) -> Iterator[tuple[str, ...]]:
        return zip(*(tokens[start:] for start in range(n)), strict=False)

    stub = SimpleNamespace(word_tokenize=word_tokenize, ngrams=ngrams, FreqDist=Counter)
    monkeypatch.setattr(part("evaluate.evaluate_utils"), "nltk", stub)
    editor = registered.BaseEditor.from_hparams(hparams())
    prompt, target = cases()[0].request.prompt, cases()[0].request.target_new
    torch.manual_seed(0)  # it samples
    with spied_routes() as routes:
        metrics, _, _ = editor.batch_edit([prompt], [target], test_generation=True, verbose=False)
    assert routes == [[prompt], [prompt]]  # teacher forcing, and one whole generation
    for phase in ("pre", "post"):
        assert metrics[0][phase]["fluency"]["ngram_entropy"] > 0
    assert sorted({text.strip().startswith(f"{prompt} {target}") for text in texts}) == [
        False,
        True,
    ]


def test_perplexity_falls(registered: ModuleType) -> None:
    editor = registered.BaseEditor.from_hparams(hparams(batch_size=3))
    prompt, target = cases()[0].request.prompt, cases()[0].request.target_new
    request = {"prompt": prompt, "target_new": target, "ground_truth": "", "locality": {}}
    with spied_routes() as routes:
        metrics, _, _ = editor.edit_requests([request], eval_metric="ppl", verbose=False)
    assert metrics[0]["post"]["rewrite_ppl"] < metrics[0]["pre"]["rewrite_ppl"]
    assert routes == [[prompt]]


# ----------------------------------------------------------- other methods, other models


def test_fine_tuning_and_meg_side_by_side(registered: ModuleType, tmp_path: Path) -> None:
    _, tok = load_model(hparams())
    short = [c for c in cases() if len(tok(f" {c.request.target_new}")["input_ids"]) == 1]
    inputs = fields(short[:4])  # the wheel's fine-tuning looks at one token of a target only
    result = {}
    for settings in (hparams(batch_size=4), ft_hparams(registered, tmp_path)):
        editor = registered.BaseEditor.from_hparams(settings)
        assert type(editor) is registered.BaseEditor
        pair = load_model(hparams())
        if editor.tok(inputs["prompts"]) != pair[1](inputs["prompts"]):
            # For every Llama the wheel takes LlamaTokenizer, which splits text unlike the one this
            # model was trained with. It takes a pair too, if it finds a name again afterwards.
            # Its fine-tuning masks unknown tokens, and counts on padding on the right.
            pair[1].unk_token, pair[1].padding_side = pair[1].pad_token, "right"
            name, settings.model_name = settings.model_name, pair
            editor = registered.BaseEditor.from_hparams(settings)
            settings.model_name = editor.model_name = name
        metrics, model, _ = editor.batch_edit(**inputs, verbose=False)
        assert isinstance(model, MeGModel) is (settings.alg_name == "MeG")
        result[settings.alg_name] = metrics
    assert mean(result["MeG"], "rewrite_acc") == 1
    assert mean(result["FT"], "rewrite_acc") >= 0.75
    # One base model, one evaluation; the wheel measures "pre" when the weights are edited already.
    if "sequential_edit" in inspect.signature(registered.BaseEditor.batch_edit).parameters:
        for name in ("rewrite_acc", "rephrase_acc"):
            before = [[row["pre"][name] for row in result[method]] for method in ("MeG", "FT")]
            assert before[0] == before[1]


def test_the_side_by_side_example_runs(registered: ModuleType, capsys: Any) -> None:
    program = runpy.run_path(str(ROOT / "examples" / "easyedit_side_by_side.py"))
    chosen = list(cases()[:6])
    line = program["run"]("FT", registered, chosen, "nowhere")
    method, rewrite, rephrase, locality, _ = line.split()
    assert method == "FT" and float(rewrite) > 40 and float(rephrase) >= 0
    wheel = "sequential_edit" not in inspect.signature(registered.BaseEditor.batch_edit).parameters
    assert locality == "-" if wheel else float(locality) > 80
    assert "not in this EasyEdit" in program["run"]("MeG2", registered, chosen, "nowhere")


def test_phi_2_is_loaded_by_its_name(registered: ModuleType, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reference_model_path())
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path / "phi-2"
    PhiForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = hparams(model_name=str(folder), layers=[1])
    editor = registered.BaseEditor.from_hparams(settings)
    assert isinstance(editor.model, PhiForCausalLM) and editor.model_name == str(folder)
    assert editor.tok(["x"]) == tokenizer(["x"]) and editor.tok.padding_side == "left"
    with pytest.raises(NotImplementedError):
        registered.BaseEditor.from_hparams(ft_hparams(registered, tmp_path, model_name=str(folder)))
