"""Prompts beside the edits that they may ask for, and what a verifier says of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from meg_editor.requests.prompts import ReadPrompt
from meg_editor.requests.spans import canonical, excerpt
from meg_editor.routing.contrasts import asks_otherwise
from meg_editor.routing.edit_texts import EditTexts
from meg_editor.routing.few_best import few_best
from meg_editor.routing.index import Match
from meg_editor.routing.routing import Candidate
from meg_editor.routing.verifier import Verifier, fact_text


@dataclass
class Pair:
    """One of B prompts, and an edit which it resembles.

    Attributes:
        row: of the prompt.
        edit: its index.
        similarity: of the edit and the span of the prompt that resembles it most.
        place: of that span among the spans of all prompts.
        is_prompt: whether the prompt is the edit's: it needs no verification.
        named: whether the prompt names the subject of the edit; else it needs none either.
        differs: whether one that names it asks for something else in a word for it; nor does that.
        verified: how sure the verifier is, in [0, 1].

    Example:
        >>> print(Pair(0, 3, 0.8, 1, is_prompt=False, named=True).candidate("Who wrote Emma?"))
        edit 3 by 'Who wrote Emma?': similarity 0.800
    """

    row: int
    edit: int
    similarity: float
    place: int
    is_prompt: bool
    named: bool = False
    differs: bool = False
    verified: float = 0.0

    def rank(self, threshold: float) -> tuple[bool, float]:
        """By which the best of a prompt is chosen: those which pass the threshold come first."""
        return self.verified >= threshold, self.verified * self.similarity

    def candidate(self, span: str) -> Candidate:
        """As an explanation has it; `span` is that of the prompt."""
        return Candidate(self.edit, span, self.similarity, self.verified, self.named, self.differs)


def pairs_of(
    prompts: Sequence[ReadPrompt],
    read: Sequence[str],
    plain: Sequence[str],
    match: Match,
    starts: Sequence[int],
    exact: Sequence[int | None],
    texts: EditTexts,
) -> list[list[Pair]]:
    """Each of B prompts with the edits it resembles, not verified yet.

    Args:
        read, plain: the prompts, and the spans of all of them, without what does not count.
        match: of these spans; those of a prompt begin at `starts` (B + 1).
        exact: the edits whose prompts these are.
    """
    scores, edits = match.score.tolist(), match.index.tolist()  # the device is waited for once
    pairs = []
    rows = zip(prompts, pairwise(starts), exact, strict=True)
    for row, (prompt, (first, last), edited) in enumerate(rows):
        text, near = canonical(prompt.text, "NFC"), []
        best = few_best(scores, edits, range(first, last), len(prompt.closing), edited)
        for edit, similarity, place in best:
            same = edit == edited or text == canonical(texts.edits[edit].prompt, "NFC")
            near.append(Pair(row, edit, similarity, place, is_prompt=same))
        named = texts.named(read[row], [pair.edit for pair in near if not pair.is_prompt])
        for pair in near:
            pair.named = pair.is_prompt or pair.edit in named
            pair.differs = pair.edit in named and asks_otherwise(
                texts.edits[pair.edit], plain[pair.place]
            )
        pairs.append(near)
    return pairs


def verify(
    pairs: Sequence[Sequence[Pair]],
    verifier: Verifier,
    read: Sequence[str],
    plain: Sequence[str],
    texts: EditTexts,
    lowest: float,
) -> None:
    """Set how sure the verifier is of each pair.

    Args:
        read, plain: the prompts, and the spans of all of them, without what does not count.
        lowest: similarity of an edit that is worth to be verified.
    """
    unsure = []
    for pair in (pair for near in pairs for pair in near):
        if pair.is_prompt:
            pair.verified = 1.0
        elif pair.named and not pair.differs and pair.similarity >= lowest:
            unsure.append(pair)
    probabilities = verifier.probability(
        [texts.spelled(pair.edit, excerpt(read[pair.row], plain[pair.place])) for pair in unsure],
        [fact_text(texts.edits[pair.edit]) for pair in unsure],
    )
    for pair, probability in zip(unsure, probabilities.tolist(), strict=True):
        pair.verified = probability
