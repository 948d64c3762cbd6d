"""Random sequences of live changes, each against a model built of the resulting edits at once.

    python tests/campaigns/live_sequences.py [--sequences 200] [--steps 12] [--seed 0]

prints one line per failure and `live_sequences tried=... failed=...`; exits with 1 if anything
failed. A sequence adds, replaces, removes, takes back, saves and loads on the reference model;
then decisions, answers, ids, neurons, anchors and names are those of the model built directly.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from meg_editor.collection.collect import Collection
from meg_editor.edits import live
from meg_editor.edits.change import Change
from meg_editor.edits.conflicts import ConflictError
from meg_editor.edits.edit import edit_id, edits_of
from meg_editor.edits.edition import Edition
from meg_editor.generators import NeuronBank
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.subject_names import words
from tests.campaigns.forked import Count, prepare

TOKENS = 6
Edits = dict[str, EditRequest]  # by id


class Remembered:
    """In place of `collect`: the neurons of facts which were collected once."""

    def __init__(self, neurons: Mapping[str, Tensor]) -> None:
        self.neurons = neurons

    def __call__(
        self, model: Any, tokenizer: Any, spec: Any, requests: Sequence[EditRequest], *_: Any
    ) -> Collection:
        found = Collection.empty(spec, len(requests))
        for row, request in enumerate(requests):
            found.neurons[row] = self.neurons[edit_id(request)]
        return found


@dataclass
class Sequences:
    """Sequences of changes of one model.

    Attributes:
        fitted: the model every sequence begins with, its neurons stored.
        pool: facts, some of which ask the same with other targets.
        others: prompts about anything else.
        neurons: of the facts of `fitted` and of the pool, by id.
        top: a folder for saved models.
    """

    fitted: MeGModel
    pool: Sequence[EditRequest]
    others: Sequence[str]
    neurons: Mapping[str, Tensor]
    top: Path
    count: Count = field(default_factory=lambda: Count("live_sequences"))

    def run(self, number: int, steps: int = 12, seed: int = 0) -> Count:
        """`number` sequences; `collect` has to be `Remembered` of `neurons`."""
        for each in range(number):
            rng = random.Random(1000 * seed + each)
            done: list[str] = []
            try:
                problem = self._sequence(rng, rng.randint(1, steps), self.top / f"{each}", done)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            self.count.note(f"sequence {each}: {'; '.join(done)}", problem)
        return self.count

    def _sequence(self, rng: random.Random, steps: int, folder: Path, done: list[str]) -> str:
        model = self.fitted.fork()
        versions: list[Edits] = [{edit.id: edit for edit in model.edits}]  # what undo goes back to
        for _ in range(steps):
            step = rng.choice((self._add, self._add, self._replace, self._remove, self._undo))
            done.append(step.__name__)
            step(model, versions, rng)
            if {edit.id for edit in model.edits} != set(versions[-1]):
                return "other edits are in force"
            if rng.random() < 0.3:
                model = self._saved(model, folder, rng, done)
        return self.differences(model, versions[-1], rng)

    # ------------------------------------------------------------------------ steps

    def _add(self, model: MeGModel, versions: list[Edits], rng: random.Random) -> None:
        facts = _one_a_prompt(rng.sample(self.pool, rng.randint(1, 4)))
        conflict = rng.choice(("keep", "keep", "refuse", "replace"))
        now = versions[-1]
        try:
            change = model.add(facts, on_conflict=conflict)
        except ConflictError as error:
            if conflict != "refuse" or not any(each in str(error) for each in now):
                raise
            return
        gone = {edit.id for edit in change.removed.edits}
        new = {edit.id: edit for edit in change.added.edits}
        merged = {edit_id(fact) for fact, _ in change.merged}
        if {*new, *merged} != {edit_id(fact) for fact in facts}:
            raise AssertionError("a fact was neither added nor in force")
        if conflict == "keep":
            keys = {fact.key for fact in facts}
            expected = {k for k, e in now.items() if e.key in keys and k not in merged}
            if gone != expected or merged != {edit_id(fact) for fact in facts} & set(now):
                raise AssertionError(f"removed {gone}, expected {expected}")
        elif not all(by in now for _, by in change.merged) or (gone and conflict == "refuse"):
            raise AssertionError("merged with an edit which is none, or removed one")
        _next(versions, {k: e for k, e in now.items() if k not in gone} | new)

    def _replace(self, model: MeGModel, versions: list[Edits], rng: random.Random) -> None:
        now = versions[-1]
        keys = {edit.key for edit in now.values()}
        facts = [fact for fact in _one_a_prompt(rng.sample(self.pool, 8)) if fact.key in keys][:2]
        if not facts:
            return
        model.replace(facts)
        keys = {fact.key for fact in facts}
        rest = {k: e for k, e in now.items() if e.key not in keys}
        _next(versions, rest | {edit_id(fact): fact for fact in facts})

    def _remove(self, model: MeGModel, versions: list[Edits], rng: random.Random) -> None:
        now = versions[-1]
        share = 1.0 if rng.random() < 0.1 else 0.3
        gone = [each for each in now if rng.random() < share]
        model.remove([each if rng.random() < 0.5 else now[each].prompt for each in gone])
        _next(versions, {k: e for k, e in now.items() if k not in gone})

    def _undo(self, model: MeGModel, versions: list[Edits], rng: random.Random) -> None:
        if len(versions) > 1:
            steps = rng.randint(1, min(3, len(versions) - 1))
            model.undo(steps)
            del versions[-steps:]

    def _saved(
        self, model: MeGModel, folder: Path, rng: random.Random, done: list[str]
    ) -> MeGModel:
        done.append("save")
        model.save_pretrained(folder)
        if rng.random() < 0.5:
            return model
        done.append("load")
        loaded: MeGModel = MeGModel.from_pretrained(folder, base=model.base)
        if list(map(noted, loaded.history())) != list(map(noted, model.history())):
            raise AssertionError("another history was loaded")
        if [edit.id for edit in loaded.edits] != [edit.id for edit in model.edits]:
            raise AssertionError("other edits were loaded")
        return loaded

    # ------------------------------------------------------------------------ comparison

    def directly(self, edits: Sequence[EditRequest]) -> MeGModel:
        """A model built of these edits at once."""
        m = self.fitted
        prompts = [edit.prompt for edit in edits]
        anchors = m.encoder.encode(prompts) if edits else m.anchors[:0]
        weight = m.index.state_weight
        states, usual = None, None
        if weight:
            usual = m.index.usual
            states = m.states.read(prompts) if edits else usual[:0]
        index = QueryIndex(
            *(anchors, [edit.subject for edit in edits], states, usual),
            name_weight=m.index.name_weight,
            state_weight=weight,
        )
        bank = NeuronBank(anchors.shape[1], m.spec.size, 0)
        empty = torch.zeros(0, m.spec.size)
        bank.fit(
            anchors, torch.stack([self.neurons[edit_id(e)] for e in edits]) if edits else empty
        )
        edition = Edition(edits_of(edits), m.gate, index, bank)
        parts = (m.encoder, edition, m.runtime, m.verifier)
        return MeGModel(m.base, m.tokenizer, m.hparams, m.spec, *parts)

    def differences(self, model: MeGModel, edits: Edits, rng: random.Random) -> str:
        """How a model differs from one of these edits, in any order; empty if in nothing."""
        direct = self.directly(rng.sample([*edits.values()], len(edits)))
        if {e.id for e in model.edits} != {e.id for e in direct.edits}:
            return "other ids"
        order = [model.edition.row_of_id[edit.id] for edit in direct.edits]
        ours, theirs = model.edition.rows(order), direct.edition.rows(range(len(order)))
        if not torch.equal(ours.neurons, theirs.neurons):
            return "other neurons"
        if not torch.allclose(ours.anchors, theirs.anchors, atol=1e-5):
            return "other anchors"
        if ours.states is not None and not torch.allclose(ours.states, theirs.states, atol=1e-2):
            return "other states"
        if _names(model, order) != _names(direct, range(len(order))):
            return "other names"
        texts = [*dict.fromkeys(fact.prompt for fact in self.pool), *self.others]
        for text, one, two in zip(texts, model.route(texts), direct.route(texts), strict=True):
            if one.is_edit != two.is_edit:
                return f"{text!r}: {one} and {two}"
            if one.is_edit and model.edits[one.edit].id != direct.edits[two.edit].id:
                return f"{text!r}: {one} and {two}"
            if edits and abs(one.score - two.score) > 1e-3:
                return f"{text!r}: {one} and {two}"
        answers = model.answer(texts, TOKENS), direct.answer(texts, TOKENS)
        wrong = [text for text, a, b in zip(texts, *answers, strict=True) if a != b]
        return f"{wrong[0]!r}: another answer" if wrong else ""


def noted(change: Change) -> tuple[object, ...]:
    """What a log holds of a change: all but the requests that were in force already."""
    edits = [[edit.id for edit in rows.edits] for rows in (change.added, change.removed)]
    what = (change.number, change.kind, change.when, change.undoes, change.not_learned)
    return (*what, *edits)


def _next(versions: list[Edits], edits: Edits) -> None:
    """Note a version, unless nothing changed."""
    if set(edits) != set(versions[-1]):
        versions.append(edits)


def _one_a_prompt(facts: Sequence[EditRequest]) -> list[EditRequest]:
    return [*{fact.key: fact for fact in facts}.values()]


def _names(model: MeGModel, rows: Sequence[int]) -> list[frozenset[str]]:
    """The words of the names in the index; they must be those of the edits."""
    names, table = model.index.names, model.index.names.table
    found = [frozenset(names._words[n] for n in table[row].tolist() if n >= 0) for row in rows]
    if found != [words(model.edits[row].subject or "") for row in rows]:
        raise AssertionError("the index has other names than the edits")
    return found


def reference(top: Path, collect: Callable[..., Collection]) -> Sequences:
    """Sequences of the reference model, whose neurons are collected here, once."""
    from meg_editor import MeGHyperParams, fit, load_model
    from meg_editor.data.world.facts import load_world
    from meg_editor.data.world.requests import edit_cases

    hparams = MeGHyperParams.preset("default", device="cpu")
    base, tokenizer = load_model(hparams)
    cases = edit_cases(load_world(), 20, 0)
    facts = [case.request for case in cases]
    fitted, _ = fit(base, tokenizer, facts[:6], hparams)
    asked = [
        EditRequest(case.paraphrases[0], case.request.target_new, case.request.subject)
        for case in cases[:10]
    ]
    swapped = [
        EditRequest(fact.prompt, other.target_new, fact.subject)
        for fact, other in zip(facts, [*facts[1:], facts[0]], strict=True)
    ]
    pool = [*facts, *swapped, *asked]
    found = collect(base, tokenizer, fitted.spec, pool, fitted.hparams).neurons
    neurons = {edit_id(fact): neuron for fact, neuron in zip(pool, found, strict=True)}
    stored = fitted.edition.rows(range(6))
    neurons |= {
        e.id: neuron.float() for e, neuron in zip(stored.edits, stored.neurons, strict=True)
    }
    others = [c.paraphrases[1] for c in cases]
    others += [probe.prompt for c in cases for probe in c.locality.get("same_subject", ())]
    return Sequences(fitted, pool, others, neurons, top)


def main() -> int:
    """Run the sequences; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12, help="of a sequence, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare("fitting.pipeline", "model.saved.loading", "model.saved.saving")
    with tempfile.TemporaryDirectory(prefix="live-sequences-") as top:
        sequences = reference(Path(top).resolve(), live.collect)
        live.collect = Remembered(sequences.neurons)
        return sequences.run(options.sequences, options.steps, options.seed).summary()


if __name__ == "__main__":
    sys.exit(main())
