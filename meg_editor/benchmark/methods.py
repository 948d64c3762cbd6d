"""What can be compared: anything with the signature of EasyEdit's methods."""

from __future__ import annotations

import hashlib
import inspect
import json
import marshal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import meg_editor
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.config.input_files import short_repr
from meg_editor.config.settings import FlatHyperParams
from meg_editor.data.cases import EvaluationCase
from meg_editor.lm.protocols import CausalLM, Tokenizer

_NO_METHOD = ("cli", "integrations", "reports", "serving")  # folders that measure nothing


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name: its row in the tables.
        apply: `apply(model, tok, requests, hparams, copy, return_orig_weights,
            keep_original_weight, **kwargs) -> (edited model, {parameter: its old value})`.
            `requests` are dicts with `prompt`, `target_new`, `subject` and `ground_truth`; by
            keyword come `pseudo` and `calibration`, facts which are not edited, and `seed`.
        hparams: whatever `apply` wants.
        code: digest of the source file that defines `apply`, as it was when this was created: a
            changed method is measured anew. What that file imports is not part of it.

    Example:
        >>> def apply(model, tok, requests, hparams, **kwargs):
        ...     return model, {}
        >>> Method("unedited", apply).name
        'unedited'
    """

    name: str
    apply: Callable[..., tuple[Any, dict[str, Any]]]
    hparams: Any = None
    code: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", _digest_of_code(self.apply))


def _digest_of_code(function: Callable[..., Any]) -> str:
    function = inspect.unwrap(function)
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):  # defined in a console, or a callable object
        code = getattr(function, "__code__", None)
        source = marshal.dumps(code) if code else repr(type(function)).encode()
    return hashlib.sha256(source).hexdigest()[:24]


def package_digest() -> str:
    """Digest of what a method and its measurement may run: this package without its commands,
    servers and reports, but with the verifiers, encoders and texts it ships.
    """
    root = Path(meg_editor.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if place.parts[0] in _NO_METHOD or not path.is_file() or path.suffix == ".pyc":
            continue
        total.update(f"{place.as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:24]


def settings_record(hparams: Any) -> Any:
    """Settings of a method in JSON types, and no secret."""
    if isinstance(hparams, FlatHyperParams):
        return {name: v for name, v in hparams.to_dict().items() if name != "api_key"}
    return json.loads(json.dumps(hparams, default=str))


def applied(
    method: Method,
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """What `method.apply` gives for `cases`: the edited model, `model` itself or around it, in
    evaluation mode, and the old values of the weights it changed. Nothing is restored.

    Raises:
        TypeError: it gives something else.
    """
    requests = [
        {
            "prompt": case.request.prompt,
            "target_new": case.request.target_new,
            "subject": case.request.subject,
            "ground_truth": case.truth,
        }
        for case in cases
    ]
    given = method.apply(
        model,
        tokenizer,
        requests,
        method.hparams,
        copy=False,
        return_orig_weights=True,
        keep_original_weight=False,
        **options,
    )
    pair = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
    if not (isinstance(pair[0], torch.nn.Module) and isinstance(pair[1], Mapping)):
        got = [type(part).__name__ for part in (given if isinstance(given, tuple) else [given])]
        raise TypeError(
            f"{method.name}: expected apply to return the edited model and the old values of the "
            f"weights it changed, as (model, {{parameter name: tensor}}), got {', '.join(got)}"
        )
    pair[0].eval()
    return pair


@contextmanager
def edited(
    method: Method,
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    snapshot: WeightSnapshot | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Within the block, `model` edited by `method`; after it, `model` as it was, bit for bit.

    All that `WeightSnapshot` has is restored however the block ends, also where the method fails.

    Args:
        snapshot: the weights before, if there is one already; otherwise one is made.
        options: keywords for `method.apply`.

    Raises:
        RuntimeError: the method changed weights which it did not hand back.
    """
    snapshot = snapshot or WeightSnapshot(model)
    try:
        result, originals = applied(method, model, tokenizer, cases, **options)
    except BaseException:
        snapshot.restore()
        raise
    try:
        yield result
    finally:
        if changed := snapshot.restore(originals):
            raise RuntimeError(
                f"{method.name} left {len(changed)} weights of the model changed, such as "
                f"{changed[0]}: apply must return their old values, by the names of "
                f"model.named_parameters(), as its second result, got {short_repr(list(originals))}"
            )
