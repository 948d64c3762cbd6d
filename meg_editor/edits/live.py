"""Live edits: added, replaced and taken back without a fit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meg_editor.collection.checks import check_lengths
from meg_editor.collection.collect import collect
from meg_editor.collection.rightness import rightness
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits.change import Change, History, Kind
from meg_editor.edits.change_lock import ChangeLock
from meg_editor.edits.conflicts import OnConflict, by_prompt, resolve, rows_of
from meg_editor.edits.consolidation import Consolidation, consolidated
from meg_editor.edits.edit import Edit, edits_of, now
from meg_editor.edits.edition import Edition, Rows
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import eager
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest, RequestError, only_edits
from meg_editor.requests.spans import surface
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.routing import Routing
from meg_editor.routing.verifier import Verifier
from meg_editor.runtime.torch_defaults import torch_defaults


class LiveEdits:
    """Edits of a model that come and go; the LLM, the encoder and the other edits stay.

    A change is one transaction: a query sees the edits before it or after it. Neurons are
    collected while other threads ask; of two changes at once the second waits, or in another task
    of the same thread is refused.
    """

    base: Any
    hparams: MeGHyperParams
    spec: NeuronSpec
    runtime: RuntimeConfig
    encoder: TextEncoder
    states: HiddenStateReader
    reader: PromptReader
    verifier: Verifier | None
    _tokenizer: Any
    _history: History
    _saved: dict[Path, Any]
    fitted: Any
    _changing: ChangeLock

    @property
    @abstractmethod
    def edition(self) -> Edition:
        """The edits in force."""

    @abstractmethod
    def _put_in_force(self, edition: Edition) -> None: ...

    @abstractmethod
    def route(self, queries: str | Sequence[str]) -> Routing: ...

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The N edits in force, with id, prompt, target, subject, when, by what, and state."""
        return self.edition.edits

    def history(self) -> tuple[Change, ...]:
        """All changes since the model was fitted, consolidated or compacted."""
        return tuple(self._history.changes)

    def add(
        self,
        requests: Iterable[EditRequest | Mapping[str, Any]],
        *,
        on_conflict: OnConflict = "refuse",
    ) -> Change:
        """Add edits; they are in force once this returns.

        Each gets a neuron of its own, stored in the bank. Of each request `prompt`, `target_new`
        and `subject` are used.

        Args:
            on_conflict: where an edit in force answers the same question otherwise: "refuse";
                "replace" it; "keep" both, unless the prompts are the same, without a look at other
                words, which takes most of the time where many edits are added.

        Raises:
            RequestError: bad requests; a `ConflictError` names the ids of both edits.
            FloatingPointError: no neuron's loss is finite; single ones are `not_learned`.

        Example:
            >>> from meg_editor import MeGHyperParams, fit, load_model
            >>> hparams = MeGHyperParams.preset("default", device="cpu")
            >>> model, tokenizer = load_model(hparams)
            >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
            >>> edited, _ = fit(model, tokenizer, facts, hparams)
            >>> change = edited.add([{"prompt": "The capital of Peru is", "target_new": "Oslo"}])
            >>> edited.answer("The capital of Peru is")
            ['Oslo']
            >>> edited.undo()[0].kind, edited.answer("The capital of Peru is")
            ('add', ['Lima'])
        """
        return self._add(only_edits(requests), on_conflict, "add")

    def replace(self, requests: Iterable[EditRequest | Mapping[str, Any]]) -> Change:
        """Give edited prompts, or edits by their ids, new targets.

        Raises:
            RequestError: bad requests.
            UnknownEditError: a prompt is not edited; the message names the nearest ones.
        """
        with self._changing.taken():
            new = by_prompt(only_edits(requests), self.edition, self._nearest)
            return self._add(new, "replace", "replace")

    def remove(self, edits: str | EditRequest | Iterable[str | EditRequest]) -> Change:
        """Take edits back, named by prompt or id: the model answers as if it never had them.

        Raises:
            RequestError: something else than edits.
            UnknownEditError: there is no such edit; nothing was changed.
        """
        given: Any = edits
        several = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
        named = list(given) if several else [given]
        with self._changing.taken():
            return self._change("remove", rows_of(named, self.edition, self._nearest))

    def undo(self, steps: int = 1) -> list[Change]:
        """Take back the last changes; returns these, the last one first.

        Raises:
            RequestError: there are not so many; nothing was changed.
        """
        with self.transaction():
            undoable = self._history.undoable
            if not isinstance(steps, Integral) or not 1 <= steps <= len(undoable):
                raise RequestError(
                    f"undo: expected 1 to {len(undoable)} steps, got {steps!r}"
                    if undoable
                    else "undo: no change to take back since the model was fitted, consolidated or "
                    "compacted"
                )
            taken = undoable[-int(steps) :][::-1]
            for change in taken:
                gone = [self.edition.row_of_id[edit.id] for edit in change.added.edits]
                self._change("undo", gone, change.removed, undoes=change.number)
            return taken

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes within the block stay only if it ends without an exception.

        Other threads see them meanwhile; their own changes wait. Those of another asyncio task of
        this thread are refused (RuntimeError).

        Example:
            >>> from meg_editor import MeGHyperParams, fit, load_model
            >>> hparams = MeGHyperParams.preset("default", device="cpu")
            >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
            >>> edited, _ = fit(*load_model(hparams), facts, hparams)
            >>> from contextlib import suppress
            >>> with suppress(OSError), edited.transaction():
            ...     _ = edited.remove("The capital of France is")
            ...     raise OSError("the disk is full")
            >>> len(edited.edits)
            1
        """
        with self._changing.taken():
            edition, hparams, history = self.edition, self.hparams, self._history
            changes, saved, fitted = list(history.changes), dict(self._saved), self.fitted
            try:
                yield
            except BaseException:
                if self.edition is not edition:
                    self._put_in_force(edition)
                self.hparams, self._history, self.fitted = hparams, history, fitted
                history.changes[:] = changes
                for folder, version in self._saved.items():
                    if version is not saved.get(folder):  # it has what is taken back
                        self._saved[folder] = replace(version, history=None)
                raise

    @torch_defaults()
    def consolidate(self) -> Consolidation:
        """Train the weight generator on all neurons; where it answers alike, copies go.

        Nothing changes where that would take more bytes than the stored neurons. No answer is
        lost: an edit keeps its stored neuron unless the generated one gives the target to its
        prompt, bare and in the contexts of collection. Ends the history.
        """
        with self._changing.taken(), eager(self.base):
            edition, result = consolidated(
                self.edition, self.hparams, self.spec.size, self._rightness
            )
            if edition is not self.edition:
                self._put_in_force(edition)
                self.hparams = self.hparams.changed(generator="dit")
                self._end_history()
            return result

    def compact(self) -> None:
        """Forget the history, and with it what removed edits still occupy."""
        with self._changing.taken():
            self._end_history()

    def _end_history(self) -> None:
        self._history = History(self.edition)
        self._saved = {folder: replace(v, history=None) for folder, v in self._saved.items()}

    # ---------------------------------------------------------------- one change

    @torch_defaults()
    def _add(
        self,
        requests: Sequence[EditRequest],
        on_conflict: OnConflict,
        kind: Kind,
        rows: Mapping[str, Rows] | None = None,
    ) -> Change:
        """Add requests; those whose ids are in `rows` with the neuron they have there."""
        with self._changing.taken():
            check_lengths(self.base, self._tokenizer, requests, self.hparams)
            resolved = resolve(requests, self.edition, self.route, on_conflict, self.verifier)
            edits = edits_of(resolved.new, kind)
            repeated = {edit.id for edit in edits} & self.edition.row_of_id.keys()
            if repeated:  # pragma: no cover - 1 in 500 million
                raise RequestError(f"two edits have the id {sorted(repeated)[0]}; change a target")
            nothing: tuple[Rows, tuple[str, ...]] = (Rows.none(), ())
            added, not_learned = self._collected(edits, rows or {}) if edits else nothing
            return self._change(
                kind,
                resolved.outdated,
                added,
                merged=tuple(resolved.merged),
                not_learned=not_learned,
            )

    def _collected(
        self, edits: Sequence[Edit], known: Mapping[str, Rows]
    ) -> tuple[Rows, tuple[str, ...]]:
        """Rows of new edits, and the prompts whose neuron does not give the target."""
        model, tokenizer, hparams = self.base, self._tokenizer, self.hparams
        neurons = torch.zeros(len(edits), self.spec.size, dtype=torch.half)
        new = [row for row, edit in enumerate(edits) if edit.id not in known]
        failed: list[str] = []
        if new:
            with eager(model):
                chosen = [edits[row] for row in new]
                found = collect(model, tokenizer, self.spec, chosen, hparams, self.runtime)
            neurons[new] = found.neurons.half()
            success = found.success.tolist()
            failed = [e.prompt for e, yes in zip(chosen, success, strict=True) if not yes]
        for row in set(range(len(edits))) - set(new):
            neurons[row] = known[edits[row].id].neurons[0]
        with torch.no_grad():
            queries = [surface(edit.prompt) for edit in edits]
            index = self.edition.index
            states = index.standardised(self.states.read(queries)) if index.state_weight else None
            rows = Rows(tuple(edits), self.encoder.encode(queries), neurons, states)
        return rows.cpu(), tuple(failed)

    @torch_defaults()  # a gate may have to learn
    def _change(
        self,
        kind: Kind,
        removed: Sequence[int],
        added: Rows | None = None,
        *,
        merged: tuple[tuple[EditRequest, str], ...] = (),
        not_learned: tuple[str, ...] = (),
        undoes: int | None = None,
    ) -> Change:
        """Put a changed edition in force, and note the change."""
        added = Rows.none() if added is None else added
        when = now()
        if not (removed or added.edits):
            return Change(0, kind, when, merged=merged)
        gone = self.edition.rows(removed)
        edition = self.edition.changed(removed, added)
        number = self._history.next_number
        change = Change(number, kind, when, added, gone, merged, not_learned, undoes)
        self._put_in_force(edition)
        self._history.changes.append(change)
        return change

    def _nearest(self, text: str) -> list[int]:
        """Rows of the edits which a text resembles."""
        with torch.no_grad():
            text = surface(text)
            found = self.edition.index.candidates(self.encoder.encode([text]), [text])
        return list(dict.fromkeys(found.index[0].tolist()))

    def _rightness(self, neurons: Tensor, rows: Sequence[int]) -> list[list[int]]:
        """Of a neuron for each of these edits; see `rightness`."""
        edits = [self.edition.edits[row] for row in rows]
        return rightness(self.base, self._tokenizer, self.spec, edits, neurons, self.hparams)
