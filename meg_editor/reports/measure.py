"""Measure an edited model: its answers, its routing and its costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from statistics import median

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.edits.edit import Edit, now
from meg_editor.evaluation.forms import sampled_facts
from meg_editor.evaluation.metrics import exact, mentions
from meg_editor.evaluation.report import versions
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import by_length, in_order, max_target_length
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import ANSWER_TOKENS
from meg_editor.model.saved.manifest import CONFIG, read_config, reading
from meg_editor.reports.model_report import (
    Costs,
    EditAnswers,
    FormShares,
    ModelReport,
    OtherShares,
    ScoreGroup,
    Share,
)
from meg_editor.reports.prompts import forms_of, other_prompts
from meg_editor.routing.routing import RoutedQuery
from meg_editor.runtime.files import resolved
from meg_editor.runtime.hub import is_repository_id
from meg_editor.runtime.progress import progress_bar, progress_stage

_ROWS = 256  # prompts routed at once
_OTHERS = 100  # prompts of a kind which ask for something else
_COMPARED = 64  # of these, answered by both models
_TIMED, _WARM_UP = 10, 3  # prompts of a kind, and in all
_NOT_SHOWN = ("model_name", "device", "api_key")  # settings: said elsewhere, or no one's business
_NAMES = ("encoder_name",)  # settings which may be a path


def measure(
    model: MeGModel, folder: str | Path, edits: int = 200, seed: int = 0, name: str | None = None
) -> ModelReport:
    """Measure an edited model on a sample of its edits.

    Each is asked as it was edited, and in other words; prompts which ask for something else are
    routed, and some of them answered. Nothing of the model changes.

    Args:
        folder: where it is saved.
        edits: at most so many are asked; where there are more, a sample.
        seed: draws the sample, and the other prompts.
        name: of the report; default: the folder's.

    Raises:
        SavedModelError: the config in `folder` is damaged.

    Example:
        >>> import tempfile
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(*load_model(hparams), facts, hparams)
        >>> folder = tempfile.mkdtemp()
        >>> edited.save_pretrained(folder)
        >>> report = measure(edited, folder)
        >>> report.right, report.answers[0].before, report.answers[0].after
        (Share(count=1, total=1), 'Paris', 'Lima')
    """
    folder = resolved(folder)
    with reading(folder / CONFIG):
        config = read_config(folder)
        base, saved, saved_with = config["base"]["name"], config["saved"], config["versions"]
    with progress_stage("report"):
        asked = _Asked(model, sampled_facts(range(len(model.edits)), seed, edits))
        answers = asked.as_edited()
        forms, in_forms = asked.in_forms()
        kinds = other_prompts(model.edits, asked.edits, _OTHERS, seed)
        others, elsewhere, same = asked.elsewhere(kinds, seed)
        scores = (
            _group("as edited", asked.routed),
            _group("in other words", in_forms),
            _group("something else", elsewhere),
        )
        timed = [prompts[:_TIMED] for prompts in (asked.prompts, *kinds.values())]
        costs = _costs(model, folder, [prompt for prompts in timed for prompt in prompts])
    changes = model.history()
    return ModelReport(
        name=name or folder.name,
        base=public_name(base) or type(model.base).__name__,
        base_id=base if is_repository_id(base) else None,
        saved=max([saved, *(change.when for change in changes)]),
        measured=now(),
        edits=len(model.edits),
        seed=seed,
        answers=answers,
        forms=forms,
        others=others,
        scores=scores,
        threshold=model.router.threshold if model.edits else None,
        judge="the verifier" if model.verifier else f"the {model.hparams.gate} gate",
        same=same,
        costs=costs,
        changes=changes,
        settings=_settings(model.hparams),
        saved_with=saved_with,
        measured_with=versions(),
    )


def public_name(source: str) -> str:
    """Name of a model or encoder without the path of a machine; hub ids stay.

    Example:
        >>> public_name("org/name"), public_name("/home/ada/llama"), public_name("C:\\\\llama")
        ('org/name', 'llama', 'llama')
    """
    if is_repository_id(source) and not Path(source).exists():
        return source
    return PureWindowsPath(PurePosixPath(source).name).name


class _Asked:
    """Sampled edits of a model, and what it says when it is asked for them."""

    def __init__(self, model: MeGModel, places: Sequence[int]) -> None:
        self.model, self.places = model, places
        self.edits: list[Edit] = [model.edits[place] for place in places]
        self.prompts = [model.reader.wrap(edit.prompt) for edit in self.edits]
        self.routed = self.route(self.prompts)
        self._tokens = max_target_length(model.tokenizer, self.edits, ANSWER_TOKENS)

    def route(self, prompts: Sequence[str]) -> list[RoutedQuery]:
        """The routing decisions of prompts."""
        parts = progress_bar(
            list(by_length([len(prompt) for prompt in prompts], _ROWS)), "routing", "batch"
        )
        return in_order(parts, lambda part: self.model.route([prompts[i] for i in part]))

    def answers(self, model: CausalLM, prompts: Sequence[str]) -> list[str]:
        """Greedy answers of the edited model or its base."""
        return batched_answers(model, self.model.tokenizer, prompts, self._tokens)

    def as_edited(self) -> tuple[EditAnswers, ...]:
        """The edits, asked as they were edited."""
        before = self.answers(self.model.base, self.prompts)
        after = self.answers(self.model, self.prompts)
        right = exact(after, [edit.target_new for edit in self.edits])
        rows = zip(self.edits, before, after, map(bool, right), strict=True)
        return tuple(EditAnswers(*row) for row in rows)

    def in_forms(self) -> tuple[tuple[FormShares, ...], list[RoutedQuery]]:
        """The edits in other words, by form, and the routing of all of these prompts."""
        forms = forms_of(self.edits, self.model.tokenizer, self.model.reader)
        flat = [(form, place, text) for form, rows in forms.items() for place, text in rows]
        texts = [text for _, _, text in flat]
        routed, answers = self.route(texts), self.answers(self.model, texts)
        decided: dict[str, list[bool]] = {form: [] for form in forms}
        answered: dict[str, list[bool]] = {form: [] for form in forms}
        for (form, place, _), query, answer in zip(flat, routed, answers, strict=True):
            decided[form].append(query.is_edit and query.edit == self.places[place])
            answered[form].append(bool(mentions(answer, self.edits[place].target_new)))
        shares = (
            FormShares(form, rows[0][1], _share(decided[form]), _share(answered[form]))
            for form, rows in forms.items()
        )
        return tuple(shares), routed

    def elsewhere(
        self, kinds: Mapping[str, Sequence[str]], seed: int
    ) -> tuple[tuple[OtherShares, ...], list[RoutedQuery], Share]:
        """What asks for something else, by kind; its routing; answers equal to the base's."""
        wrap = self.model.reader.wrap
        flat = [(kind, wrap(text)) for kind, texts in kinds.items() for text in texts]
        routed = self.route([text for _, text in flat])
        alone: dict[str, list[bool]] = {kind: [] for kind in kinds}
        for (kind, _), query in zip(flat, routed, strict=True):
            alone[kind].append(not query.is_edit)
        left = [text for (_, text), query in zip(flat, routed, strict=True) if not query.is_edit]
        left = [left[place] for place in sampled_facts(range(len(left)), seed, _COMPARED)]
        pairs = zip(
            self.answers(self.model, left), self.answers(self.model.base, left), strict=True
        )
        same = _share([ours == theirs for ours, theirs in pairs])
        shares = (OtherShares(kind, texts[0], _share(alone[kind])) for kind, texts in kinds.items())
        return tuple(shares), routed, same


def _share(values: Sequence[bool]) -> Share:
    return Share(sum(values), len(values))


def _group(name: str, routed: Sequence[RoutedQuery]) -> ScoreGroup:
    scores = tuple(query.score for query in routed if math.isfinite(query.score))
    return ScoreGroup(name, scores, _share([query.is_edit for query in routed]))


def _costs(model: MeGModel, folder: Path, prompts: Sequence[str]) -> Costs:
    return Costs(
        generator=_bytes(model.generator.state_dict().values()),
        gate=_bytes(model.gate.state_dict().values()),
        index=_bytes(model.index.state_dict().values()),
        encoder=_bytes(model.encoder.parameters()),
        verifier=_bytes(model.verifier.adapter.values()) if model.verifier else 0,
        stored=model.stored_bytes,
        base=_bytes(model.base.parameters()),
        folder=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        route=_milliseconds(model, prompts) if model.edits else None,
        device=str(input_device(model.base).type),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _milliseconds(model: MeGModel, prompts: Sequence[str]) -> float:
    """Median of routing a prompt alone."""
    seconds = []
    for prompt in [*prompts[:_WARM_UP], *prompts]:
        start = time.perf_counter()
        _ = model.route(prompt)[0]  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[len(prompts[:_WARM_UP]) :])


def _settings(hparams: MeGHyperParams) -> dict[str, object]:
    """Those which differ from their defaults; of paths the name alone."""
    values, defaults = hparams.to_dict(), MeGHyperParams().to_dict()
    shown = [entry.name for entry in fields(hparams) if entry.name not in _NOT_SHOWN]
    return {
        name: public_name(str(values[name])) if name in _NAMES else values[name]
        for name in shown
        if values[name] != defaults[name]
    }
