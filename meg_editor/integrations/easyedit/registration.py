"""Register MeG as a method of EasyEdit, and undo it. All patches of EasyEdit are in this module.

util.alg_dict.ALG_DICT
    gets "MeG": EasyEdit looks up methods there.
editors.batch_editor.BatchEditor.is_batchable_method
    accepts MeG: it is a hard-coded list.
editors.editor.BaseEditor.__init__
    loads MeG's models by `load_model`: EasyEdit chooses by parts of names, refuses Phi-2, and
    leaves a given pair of model and tokenizer without padding. No ./logs is written.
editors.editor.BaseEditor.edit, edit_requests, generate_edit, batch_edit
    get clean arguments for MeG, see `arguments.py`.
editors.editor.BaseEditor.edit, edit_requests, generate_edit
    with sequential_edit pass MeG the model edited last. EasyEdit passes the initial one, as it
    assumes weights changed in place; the wheel ignores sequential_edit.
editors.editor.BaseEditor.batch_edit, of the wheel alone
    accepts, for MeG, the arguments of the current EasyEdit. The wheel ignores sequential_edit and
    returns the metrics of the last chunk only.
evaluate.*
    routes on the prompt, see `evaluation.py`.

Other methods are unchanged.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.apply import apply_meg_to_model
from meg_editor.fitting.context import standard_facts
from meg_editor.integrations.easyedit.arguments import cleaned
from meg_editor.integrations.easyedit.evaluation import EVALUATORS, MODULES, on_the_prompt
from meg_editor.integrations.easyedit.importing import import_easyedit
from meg_editor.lm.loading import load_model, resolve_device
from meg_editor.lm.reference import resolve_model_name
from meg_editor.model.meg_model import MeGModel
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore

_LOG = logging.getLogger(__name__)
NAME = "MeG"
_MARK = "_meg_editor_replaced"


class RegistrationError(RuntimeError):
    """EasyEdit has another method named "MeG"."""


def register() -> ModuleType:
    """Add MeG to EasyEdit; returns the package `easyeditor`. Undone by `unregister`; idempotent.

    Raises:
        EasyEditError: EasyEdit cannot be imported.
        RegistrationError: another "MeG" is registered.
    """
    easyedit = import_easyedit()
    methods = _module("util.alg_dict").ALG_DICT
    if NAME in methods and not hasattr(methods[NAME], _MARK):
        raise RegistrationError(
            f"EasyEdit's ALG_DICT has another {NAME!r} already: {methods[NAME]!r}; remove it "
            f"(del ALG_DICT[{NAME!r}]) before you register this one"
        )
    if NAME in methods:
        return easyedit
    replacements = list(_replacements())
    # One store per registration: the encoder is tuned once for all calls.
    apply = functools.partial(apply_meg_to_model, store=ArtifactStore(None))
    setattr(apply, _MARK, None)
    methods[NAME] = apply
    for owner, name, replacement in replacements:
        original = inspect.getattr_static(owner, name)
        setattr(replacement, _MARK, original)
        static = isinstance(original, staticmethod)
        setattr(owner, name, staticmethod(replacement) if static else replacement)
    return easyedit


def unregister() -> None:
    """Undo `register`; does nothing without a registration."""
    table = sys.modules.get("easyeditor.util.alg_dict")
    methods = getattr(table, "ALG_DICT", {})
    if not hasattr(methods.get(NAME), _MARK):
        return
    del methods[NAME]
    for owner, name, _ in _replacements():
        replaced = getattr(getattr(owner, name), _MARK, None)
        if replaced is not None:
            setattr(owner, name, replaced)


def _module(name: str) -> ModuleType:
    # EasyEdit's star imports shadow its submodules as attributes, not in sys.modules.
    return importlib.import_module(f"easyeditor.{name}")


def _replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Patches: owner, attribute name, replacement."""
    editor = _module("editors.editor")
    batch_editor = _module("editors.batch_editor").BatchEditor
    batchable = batch_editor.is_batchable_method
    yield batch_editor, "is_batchable_method", lambda name: name == NAME or batchable(name)
    yield editor.BaseEditor, "__init__", _init(editor.BaseEditor.__init__, editor)
    for name in ("edit", "edit_requests", "generate_edit"):
        if hasattr(editor.BaseEditor, name):
            original = getattr(editor.BaseEditor, name)
            yield editor.BaseEditor, name, _on_clean_arguments(original, _one_by_one(original))
    original = editor.BaseEditor.batch_edit
    whole = "sequential_edit" in inspect.signature(original).parameters
    replacement = _all_or_nothing(original if whole else _batch_edit(original))
    yield editor.BaseEditor, "batch_edit", _on_clean_arguments(original, replacement)
    for name in MODULES:
        try:
            module = _module(name)
        except ImportError:
            continue  # the wheel and the checkout do not have the same ones
        for function in EVALUATORS:
            if hasattr(module, function):
                yield module, function, on_the_prompt(getattr(module, function))


def _init(original: Callable[..., Any], editor: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def init(self: Any, hparams: Any) -> None:
        if not isinstance(hparams, MeGHyperParams):
            original(self, hparams)
            return
        given = hparams.model_name
        model, tok = load_model(hparams) if isinstance(given, str) else given
        if tok.pad_token_id is None:
            tok.pad_token = tok.eos_token
        tok.padding_side = "left"
        model.eval()  # answers before and after the edit are compared
        device, parallel = resolve_device(hparams.device), hparams.model_parallel
        pair: Any = (model, tok)
        make_logs = editor.make_logs
        hparams.model_name, hparams.device, editor.make_logs = pair, device, lambda: None
        # With model_parallel the wheel expects the index of a GPU, and makes that the device.
        hparams.model_parallel = parallel and model.device.type == "cuda"
        try:
            original(self, hparams)
        finally:
            hparams.model_name, hparams.device, editor.make_logs = given, device, make_logs
            hparams.model_parallel = parallel
        # A string, because evaluation searches it for names of model families.
        self.model_name = given if isinstance(given, str) else str(model.name_or_path)
        self.apply_algo = _for_many_calls(self.apply_algo)

    return init


def _for_many_calls(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` for one editor, whose calls share the tuning facts and the text encoder.

    A script edits a thousand records one by one: to load them takes longer than to edit one.
    """
    facts = functools.cache(standard_facts)
    encoder = functools.lru_cache(1)(TextEncoder.from_pretrained)

    @functools.wraps(apply)
    def apply_shared(model: Any, tok: Any, requests: Any, hparams: Any, **options: Any) -> Any:
        if isinstance(model, MeGModel):  # it has them, and grows where none are given
            return apply(model, tok, requests, hparams, **options)
        pseudo, calibration = facts()
        shared: dict[str, Any] = {"pseudo": pseudo, "calibration": calibration}
        shared["encoder"] = encoder(resolve_model_name(hparams.encoder_name))
        return apply(model, tok, requests, hparams, **{**shared, **options})

    return apply_shared


def _on_clean_arguments(
    original: Callable[..., Any], replacement: Callable[..., Any]
) -> Callable[..., Any]:
    """`replacement` for MeG, and the untouched `original` for other methods."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.alg_name != NAME:
            return original(self, *args, **kwargs)
        given = cleaned(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        return replacement(self, **given.pop("kwargs", {}), **given)

    return call


def _all_or_nothing(batch_edit: Callable[..., Any]) -> Callable[..., Any]:
    """`batch_edit` for lists; a call that fails leaves the editor as it was."""

    @functools.wraps(batch_edit)
    def checked(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(prompts, str):
            raise ValueError(
                f"prompts: expected a list of prompts, got text ({prompts!r}); edit(...) takes one"
            )
        size = self.hparams.batch_size
        if len(prompts) > size and not kwargs.get("sequential_edit"):
            _LOG.warning(
                "batch_edit: the returned model has the last %d of %d edits, since each batch of "
                "%d begins with the unedited model; raise batch_size, or give sequential_edit=True",
                *((len(prompts) - 1) % size + 1, len(prompts), size),
            )
        before = self.model  # which sequential edits replace after every chunk
        try:
            return batch_edit(self, prompts, *args, **kwargs)
        except BaseException:
            self.model = before
            raise

    return checked


def _one_by_one(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def edit(self: Any, *args: Any, **kwargs: Any) -> Any:
        # EasyEdit wants 1 here, and the true number in batch_edit: one YAML file serves both.
        size, self.hparams.batch_size = self.hparams.batch_size, 1
        try:
            return edit_one_by_one(self, *args, **kwargs)
        finally:
            self.hparams.batch_size = size

    def edit_one_by_one(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        if not {**given, **given.get("kwargs", {})}.get("sequential_edit"):
            return original(self, *args, **kwargs)
        apply, latest = self.apply_algo, self.model

        def apply_to_latest(_: Any, *rest: Any, **options: Any) -> Any:
            nonlocal latest
            latest, weights = apply(latest, *rest, **options)
            return latest, weights

        self.apply_algo = apply_to_latest
        try:
            result = original(self, *args, **kwargs)
        finally:
            self.apply_algo = apply
        self.model = latest
        return result

    return edit


def _batch_edit(original: Callable[..., Any]) -> Callable[..., Any]:
    renamed = {"locality_inputs": "locality_prompts", "portability_inputs": "locality_ground_truth"}

    @functools.wraps(original)
    def batch_edit(
        self: Any, prompts: list[str], target_new: list[str], *args: Any, **kwargs: Any
    ) -> Any:
        sequential = kwargs.pop("sequential_edit", False)
        kwargs = {renamed.get(name, name): value for name, value in kwargs.items()}
        call = inspect.signature(original).bind(self, prompts, target_new, *args, **kwargs)
        metrics, edited, weights = [], self.model, {}
        for start in range(0, len(prompts), self.hparams.batch_size):
            rows = slice(start, start + self.hparams.batch_size)
            chunk = {name: _cut(value, rows) for name, value in call.arguments.items()}
            options = chunk.pop("kwargs", {})
            chunk_metrics, edited, weights = original(**chunk, **options)
            metrics += [_numbered(row, start) for row in chunk_metrics]
            if sequential:
                self.model = edited
        return metrics, edited, weights

    return batch_edit


def _numbered(row: Any, start: int) -> Any:
    """The metrics of a request with its number among all, not in its batch."""
    known = isinstance(row, dict) and isinstance(row.get("case_id"), int)
    return row | {"case_id": row["case_id"] + start} if known else row


def _cut(value: Any, rows: slice) -> Any:
    """An argument of batch_edit with every list cut to `rows`."""
    if isinstance(value, dict):
        return {name: _cut(entry, rows) for name, entry in value.items()}
    return value[rows] if isinstance(value, (list, tuple)) else value
