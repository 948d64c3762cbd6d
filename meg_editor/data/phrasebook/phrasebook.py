"""The phrasebook: relations in many phrasings and forms, to learn what asks for a fact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from meg_editor.data.phrasebook.changes import changed, retold
from meg_editor.data.phrasebook.dialogues import Asked, FollowUps, draw_dialogue
from meg_editor.data.phrasebook.forms import read_forms
from meg_editor.data.phrasebook.kinds import Kind, Relation, read_kinds, read_lists
from meg_editor.data.phrasebook.names import draw_name, other_wording, similar_name
from meg_editor.data.phrasebook.texts import notes, running_text
from meg_editor.data.prompt_forms import Expectation, PromptForm
from meg_editor.requests.turns import under

_FILES = (
    "people_and_works.yaml",
    "people_and_institutions.yaml",
    "places_and_things.yaml",
    "technology_and_nature.yaml",
)
FOLLOW_UPS = ("follow_ups.yaml", "more_follow_ups.yaml")
SYSTEMS = ("systems.yaml", "more_systems.yaml")
# Shares of the pairs that are drawn.
_ASKS = 0.45  # the prompt asks for the fact
_CHANGED = 0.1  # of the others: for the fact's time in place of its place, or the first one
_SIBLING = 0.36  # for another relation of the subject
_NEIGHBOUR = 0.2  # for the same relation of another subject; the rest only mentions the fact
_PLAIN = 0.35  # of the prompts: the phrasing alone
_RUNNING = 0.12  # of the other prompts: a text which gets to the fact
_CUT = 0.4  # of the passages: cut from anywhere
_DIALOGUE = 0.22  # of what is left: a dialogue whose last turn goes back to an earlier one
_NOTES = 0.08  # of the prompts which only mention the fact: notes on several subjects
_TASK = 0.12  # of these: a question under a system text which gives another task
_USUAL = 0.12  # of all prompts: under a system text that changes nothing
_EXAMPLE = 0.15  # of these system texts: with an example
_REWORDED = 0.25  # of the prompts: the subject in other words than the fact's
_FACT_REWORDED = 0.1  # of the facts asked for, too
_RETOLD = 0.12  # misspelled, or of today
_WRAPPED = 0.3  # of the texts on one line: inside a form that is put around a question
_WEIGHTS = {"dropped": 2.0}  # of the kinds of forms, beside the root of their number
_WRAPPERS = ("prefix", "suffix", "context")
_TURN = "turn"  # the kind of the forms that follow on an errand
_BARE = PromptForm("bare", _TURN, "edit", "{q}")
_OTHER_TURN = 0.5  # of those which do not ask for the fact: another question is asked
# Shares of the other questions in a prompt.
_DROPPED = 0.5  # where another fact is asked for: this one, asked before and taken back
_SAME_SUBJECT = 0.3  # of the others: about another relation of the subject
_SAME_RELATION = 0.2  # about the same relation of another subject


@dataclass(frozen=True)
class Pair:
    """A prompt, a fact, and whether a reply to the prompt states the fact."""

    prompt: str
    fact: str
    asks: bool
    why: str


class Phrasebook:
    """Draws pairs of a prompt and a fact.

    Args:
        other_facts: whether some prompts ask for another fact, of the subject or of the relation;
            False: a prompt asks for its fact or only mentions it.

    Example:
        >>> pair = Phrasebook.load().draw(random.Random(0))
        >>> isinstance(pair.asks, bool)
        True
    """

    def __init__(
        self, kinds: Sequence[Kind], forms: Sequence[PromptForm], other_facts: bool = True
    ) -> None:
        self.kinds, self.forms, self.other_facts = kinds, forms, other_facts

    @classmethod
    def load(cls, further: Sequence[Kind] = (), other_facts: bool = True) -> Phrasebook:
        """The phrasebook that is shipped, with `further` kinds of subjects."""
        shipped = [kind for name in _FILES for kind in read_kinds(name)]
        return cls([*shipped, *further], read_forms(), other_facts)

    @property
    def texts(self) -> list[str]:
        """Every phrasing, name, answer and form."""
        return [
            *(text for kind in self.kinds for text in kind.subjects),
            *(
                text
                for kind in self.kinds
                for relation in kind.relations
                for text in (*relation.statements, *relation.questions, *relation.answers)
            ),
            *(form.template for form in self.forms),
        ]

    @cached_property
    def _by_expectation(self) -> dict[str, dict[str, list[PromptForm]]]:
        result: dict[str, dict[str, list[PromptForm]]] = {"edit": {}, "none": {}}
        for form in self.forms:
            result[form.expect].setdefault(form.kind, []).append(form)
        return result

    @cached_property
    def _wrappers(self) -> list[PromptForm]:
        """Forms that go around a question, whether or not that asks for a fact."""
        groups = self._by_expectation["edit"]
        forms = [form for kind in _WRAPPERS for form in groups.get(kind, ())]
        return [form for form in forms if "q" in form.fields <= {"q", "t"}]

    def draw(self, rng: random.Random) -> Pair:
        """A pair; by and large as many ask for their fact as do not."""
        kind = rng.choice(self.kinds)
        relation, subject = rng.choice(kind.relations), draw_name(rng, kind.subjects)
        answer = rng.choice(relation.answers)
        phrasing, chance = rng.choice(relation.statements + relation.questions), rng.random()
        asks = chance < _ASKS
        name = _reworded(rng, kind, subject, _FACT_REWORDED) if asks else subject
        fact = f"{phrasing.format(name)} {answer}"
        if asks:
            share = _REWORDED if name == subject else 0.0  # not both, with two titles
            return self._pair(
                rng, kind, relation, subject, answer, fact, "edit", known=phrasing, share=share
            )
        chance = rng.random() if self.other_facts else 1.0
        others = kind.besides(relation)
        asked = rng.choice(relation.questions).format(subject)
        if chance < _CHANGED:
            return self._pair(rng, kind, relation, subject, answer, fact, "changed")
        if chance < _CHANGED + _SIBLING and others:
            other = rng.choice(others)
            return self._pair(rng, kind, other, subject, answer, fact, "sibling", asked)
        if chance < _CHANGED + _SIBLING + _NEIGHBOUR:
            name = similar_name(rng, subject, kind.subjects)
            return self._pair(rng, kind, relation, name, answer, fact, "neighbour", asked)
        return self._pair(rng, kind, relation, subject, answer, fact, "none", known=phrasing)

    def _pair(
        self,
        rng: random.Random,
        kind: Kind,
        relation: Relation,
        subject: str,
        answer: str,
        fact: str,
        why: str,
        dropped: str | None = None,
        *,
        known: str | None = None,
        share: float = _REWORDED,
    ) -> Pair:
        called = _reworded(rng, kind, subject, share, in_full=why == "neighbour")

        def one(texts: Sequence[str]) -> str:
            # Now and then the very words of the fact.
            chosen = rng.choice(texts)
            same = known in texts and rng.random() < 0.2
            return (known if same and known else chosen).format(called)

        other = self._other_question(rng, kind, relation, subject)
        if dropped and rng.random() < _DROPPED:
            other = dropped
        values = {
            "p": one(relation.statements),
            "q": one(relation.questions),
            "s": called,
            "other": other,
            "a": answer,
            "b": rng.choice(relation.answers),
            "t": self._passage(rng),
        }
        asks, tells = why == "edit", why not in ("none", "changed")
        if why == "changed" or rng.random() < _RETOLD:
            again = changed if why == "changed" else retold
            values |= {name: again(rng, values[name], called) for name in "pq"}
        if why != "none" and rng.random() < _PLAIN:
            prompt = values[rng.choice("pq")]
        elif tells and rng.random() < _RUNNING:
            write = rng.choice((running_text, notes))
            prompt = write(rng, kind, rng.choice(relation.statements), subject)
        elif why != "changed" and rng.random() < _DIALOGUE:
            why = f"{why}:dialogue"
            prompt = self._dialogue(
                rng, kind, relation, subject, (answer, values["b"]), not why.startswith("none")
            )
        elif why == "none" and rng.random() < _TASK:
            why = "none:system"
            task = rng.choice(self._systems["tasks"])
            prompt = under(task, self._wrapped(rng, values[rng.choice("pqqq")]))
        elif why == "none" and rng.random() < _NOTES:
            prompt = notes(rng, kind, rng.choice(relation.statements), subject, begun=False)
        else:
            form = self._form(rng, "none" if why == "none" else "edit")
            why = f"{why}:{form.kind}"
            prompt = form.filled(values) or f"{values['p']} not"  # no negation of this phrasing
            prompt = self._wrapped(rng, prompt)
        if why != "none:system" and rng.random() < _USUAL:
            system = rng.choice(self._systems["usual"])
            if rng.random() < _EXAMPLE:
                system += f"\nQ: {self._question(rng, subject)}\nA: {rng.choice(relation.answers)}"
            prompt = under(system, prompt)
        return Pair(prompt, fact, asks, why)

    def _form(self, rng: random.Random, expect: Expectation) -> PromptForm:
        """A form, more often of a kind that has many."""
        kinds = self._by_expectation[expect]
        names = sorted(kinds)
        weights = [_WEIGHTS.get(name, 1.0) * len(kinds[name]) ** 0.5 for name in names]
        return rng.choice(kinds[rng.choices(names, weights)[0]])

    def _wrapped(self, rng: random.Random, text: str) -> str:
        """The text, now and then inside a form that is put around a question."""
        if not self._wrappers or "\n" in text or rng.random() >= _WRAPPED:
            return text
        return rng.choice(self._wrappers).filled({"q": text, "t": self._passage(rng)}) or text

    def _dialogue(
        self,
        rng: random.Random,
        kind: Kind,
        relation: Relation,
        subject: str,
        answers: tuple[str, str],
        asks: bool,
    ) -> str:
        def ending(of: Relation) -> str:
            return kind.by_pronoun(rng.choice(of.statements)).format(subject)

        def question() -> str:
            return rng.choice(relation.questions).format(subject)

        def other_question() -> str:
            return self._other_question(rng, kind, relation, subject)

        def going_on() -> str:
            expect: Expectation = "edit" if asks or rng.random() < _OTHER_TURN else "none"
            form = rng.choice(self._by_expectation[expect].get(_TURN, [_BARE]))
            about = question() if asks or expect == "none" else other_question()
            return form.filled({"q": about, "other": other_question()}) or about

        name = similar_name(rng, subject, kind.subjects)
        others = kind.besides(relation)
        sibling = None
        if others:
            other = rng.choice(others)
            sibling = rng.choice(other.questions).format(subject), ending(other)
        asked = Asked(
            subject,
            question=question,
            ending=lambda: ending(relation),
            neighbour=(name, rng.choice(relation.questions).format(name)),
            sibling=sibling,
            other=lambda: self._wrapped(rng, other_question()),
            going_on=going_on,
            answers=answers,
        )
        return draw_dialogue(rng, self._follow_ups, asked, asks)

    @cached_property
    def _follow_ups(self) -> FollowUps:
        said = read_lists(*FOLLOW_UPS)
        return FollowUps(**{name: tuple(texts) for name, texts in said.items()})

    @cached_property
    def _systems(self) -> dict[str, list[str]]:
        """System texts: "usual" ones, and "tasks" under which no question is answered."""
        return read_lists(*SYSTEMS)

    def _other_question(
        self, rng: random.Random, kind: Kind, relation: Relation, subject: str
    ) -> str:
        """A question about something else, often one that is near."""
        chance = rng.random()
        others = kind.besides(relation)
        if chance < _SAME_SUBJECT and others:
            return rng.choice(rng.choice(others).questions).format(subject)
        if chance < _SAME_SUBJECT + _SAME_RELATION:
            name = similar_name(rng, subject, kind.subjects)
            return rng.choice(relation.questions).format(name)
        return self._question(rng, subject)

    def _question(self, rng: random.Random, subject: str) -> str:
        kind = rng.choice(self.kinds)
        relation = rng.choice(kind.relations)
        other = rng.choice([name for name in kind.subjects if name != subject])
        return rng.choice(relation.questions).format(other)

    def _passage(self, rng: random.Random) -> str:
        sentences = []
        for _ in range(rng.randint(1, 4)):
            kind = rng.choice(self.kinds)
            relation = rng.choice(kind.relations)
            statement = rng.choice(relation.statements).format(rng.choice(kind.subjects))
            sentences.append(f"{statement} {rng.choice(relation.answers)}.")
        if rng.random() >= _CUT:
            return " ".join(sentences)
        # What comes before a question in a text is often cut from anywhere.
        words = f"{' '.join(sentences)} {self._question(rng, '')}".split()
        start = rng.randrange(len(words))
        return " ".join(words[start : start + rng.randint(3, 14)]) + rng.choice((".", "", ")", ":"))


def _reworded(
    rng: random.Random, kind: Kind, name: str, share: float, in_full: bool = False
) -> str:
    """The name, `share` of the time in other words."""
    if rng.random() >= share:
        return name
    noun = rng.choice(kind.name.split("_or_")).replace("_", " ")
    return other_wording(rng, name, noun, kind.is_person, in_full)
