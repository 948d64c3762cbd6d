"""Routing while an answer is written: which edit is in effect when, and whose logits count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meg_editor.model.decoding import DecodingRouter, Proposal
from meg_editor.requests.request import EditRequest

WORDS = [
    "<pad>",
    "Tell",
    "me",
    "about",
    "France.",
    "It",
    "is",
    "big.",
    "Its",
    "capital",
    "Lima",
    ".",
]
EDITS = [EditRequest("The capital of France is", "Lima", "France")]
PROMPT = [1, 2, 3, 4]


def decode(ids: Sequence[int]) -> str:
    return " ".join(WORDS[token] for token in ids)


class Judges:
    """Proposes edit 0 for every text, and confirms texts that end with the given words."""

    def __init__(self, ending: str = "Its capital is") -> None:
        self.ending = ending
        self.verified: list[str] = []
        self.rows: list[list[int]] = []

    def propose(self, rows: list[int], texts: list[str]) -> list[list[Proposal]]:
        return [[Proposal(0, 1.0)] for _ in rows]

    def confirm(self, texts: list[str], edits: list[int]) -> list[bool]:
        self.verified += texts
        return [text.endswith(self.ending) for text in texts]

    def logits(self, rows: list[list[int]], edits: list[int]) -> Tensor:
        self.rows += rows
        scores = torch.zeros(len(rows), len(WORDS))
        scores[:, 10] = 5.0
        return scores


def router(
    judges: Judges,
    prompts: Sequence[Sequence[int]] = (PROMPT,),
    mask: Tensor | None = None,
    edited: Sequence[int] = (),
) -> DecodingRouter:
    return DecodingRouter(
        torch.tensor(prompts),
        mask,
        ["Tell me about France."] * len(prompts),
        edited,
        judges.propose,
        judges.confirm,
        judges.logits,
        decode,
        EDITS,
        lambda edit: 1,
    )


def step(routing: DecodingRouter, *rows: Sequence[int]) -> Tensor:
    return routing(torch.tensor(rows), torch.zeros(len(rows), len(WORDS)))


def test_the_edit_is_in_effect_from_the_place_on_where_it_is_asked() -> None:
    routing = router(judges := Judges())
    text = [*PROMPT, 5, 6, 7, 8, 9]  # "It is big. Its capital"
    assert not step(routing, text).any()
    assert step(routing, [*text, 6])[0, 10] == 5
    assert judges.rows == [[*text, 6]]


def test_it_ends_with_the_target_and_with_the_sentence() -> None:
    text = [*PROMPT, 8, 9, 6]
    for last in (10, 7):  # "Lima", and "big." without it
        routing = router(Judges())
        assert step(routing, text).any()
        assert not step(routing, [*text, last]).any()
    routing = router(Judges())
    assert step(routing, text).any()
    assert step(routing, [*text, 5]).any()  # neither: it goes on


def test_it_ends_after_some_tokens_whatever_is_written() -> None:
    routing = router(Judges())
    text = [*PROMPT, 8, 9, 6]
    lasted = 0
    while step(routing, text).any() and lasted < 50:
        text, lasted = [*text, 5], lasted + 1
    assert 2 <= lasted <= 10


def test_edited_prompts_and_prompts_without_an_answer_are_left_alone() -> None:
    text = [*PROMPT, 8, 9, 6]
    assert not step(router(judges := Judges(), edited=[0]), text).any()
    assert not step(router(Judges("")), PROMPT).any()
    assert not judges.verified


def test_a_refused_text_is_not_verified_again() -> None:
    routing = router(judges := Judges("never"))
    for _ in range(3):
        step(routing, [*PROMPT, 8, 9])
    assert len(judges.verified) == 1


def test_beams_take_their_edit_with_them() -> None:
    routing = router(Judges())
    asks, other = [*PROMPT, 8, 9, 6], [*PROMPT, 5, 6, 5]
    first = step(routing, asks, other)
    assert first[0].any() and not first[1].any()
    # Both beams now continue the text of the first, then change places.
    after = step(routing, [*asks, 5], [*asks, 8])
    assert after[0].any() and after[1].any()
    swapped = step(routing, [*asks, 8, 5], [*asks, 5, 6])
    assert swapped[0].any() and swapped[1].any()


def test_padding_is_not_part_of_a_text() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    routing = router(judges := Judges(), [[0, 0, 1, 2], PROMPT], mask)
    step(routing, [0, 0, 1, 2, 8, 9, 6], [*PROMPT, 8, 9, 6])
    assert judges.rows == [[1, 2, 8, 9, 6], [*PROMPT, 8, 9, 6]]


def test_scores_of_other_rows_stay_and_the_argument_is_not_changed() -> None:
    routing = router(Judges(), [PROMPT, PROMPT])
    scores = torch.ones(2, len(WORDS))
    result = routing(torch.tensor([[*PROMPT, 8, 9, 6], [*PROMPT, 5, 6, 7]]), scores)
    assert torch.equal(scores, torch.ones(2, len(WORDS)))
    assert torch.equal(result[1], scores[1]) and result[0, 10] == 5


def test_the_question_is_read_with_the_text() -> None:
    step(router(judges := Judges()), [*PROMPT, 8, 9, 6])
    assert judges.verified == ["Tell me about France.\nIts capital is"]
