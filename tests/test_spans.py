"""Candidate question spans, form by form."""

from __future__ import annotations

import pytest

from meg_editor.requests.spans import canonical, closing_spans, excerpt, spans_of, surface
from meg_editor.requests.turns import flush

Q = "Which instrument does Ada play?"
FORMS = {
    "alone": Q,
    "instruction behind": f"{Q} Answer in one word.",
    "instruction in another language": f"{Q} Responde en una palabra.",
    "instruction on its own line": f"{Q}\nAnswer in one word.",
    "aside": f"{Q} (one word)",
    "task in front": f"Please answer: {Q}",
    "greeting in front": f"Hi! I was wondering, {Q}",
    "role in front": f"You are a helpful assistant. {Q}",
    "labels": f"Question: {Q}\nAnswer:",
    "heading": f"## {Q}",
    "list": f"1. {Q}",
    "passage in front": f"The river runs north. Its bridges were rebuilt.\n\n{Q}",
    "passage behind": f"{Q}\n\nContext: The river runs north. Its bridges were rebuilt.",
    "quoted": f'How would you answer "{Q}" in a quiz?',
    "typographic quotes": f"They ask “{Q}” in the quiz.",
    "guillemets": f"On demande «{Q}» dans le quiz.",
    "few-shot": f"Q: Who wrote Emma?\nA: Austen\nQ: {Q}\nA:",
}


@pytest.mark.parametrize("name", FORMS)
def test_the_question_is_a_span(name: str) -> None:
    assert Q in spans_of(FORMS[name])


@pytest.mark.parametrize(
    "text",
    [
        "日本的首都是哪里？请用一个词回答。",
        "日本の首都はどこですか。一言で答えてください。",
        "ما هي عاصمة اليابان؟ أجب بكلمة واحدة.",
        "जापान की राजधानी क्या है। एक शब्द में उत्तर दें।",
    ],
)
def test_sentences_end_in_every_script(text: str) -> None:
    spans = spans_of(text)
    first = text[: text.index(next(c for c in text if c in "？。؟।")) + 1]
    assert first in spans


def test_whole_text_comes_first_and_nothing_repeats() -> None:
    for text in FORMS.values():
        spans = spans_of(text)
        assert spans[0] == text.strip()
        assert len(spans) == len(set(spans)) <= 20


def test_spans_of_a_long_text_are_few_and_of_both_ends() -> None:
    text = f"{Q} " + "It rained again. " * 50_000 + "Who wrote Emma?"
    spans = spans_of(text)
    assert len(spans) < 30 and Q in spans and "Who wrote Emma?" in spans


def test_closing_spans_leave_out_what_is_mentioned_before() -> None:
    assert Q not in closing_spans(f"{Q} Never mind. Who wrote Emma?")
    assert closing_spans(f"{Q} Never mind. Who wrote Emma?")[-1] == "Who wrote Emma?"


@pytest.mark.parametrize(
    "text",
    [
        f'"{Q}"',
        f"  {Q}\n",
        f"{Q}??",
        f"{Q} ?",
        f"**{Q}**",
        f"“{Q}”",
        "Which instrument  does Ada play？",
    ],
)
def test_surface_does_not_decide(text: str) -> None:
    assert canonical(text) == Q


def test_canonical_is_composed() -> None:
    assert canonical("Beyonce\u0301") == canonical("Beyonc\u00e9")


def test_excerpts_hold_begin_span_and_end() -> None:
    text = "Translate this. " + "x " * 2000 + Q + " y" * 2000 + " Be brief."
    short = excerpt(text, Q)
    assert len(short) < 600 and Q in short
    assert short.startswith("Translate this.") and short.endswith("Be brief.")
    assert excerpt("short", "short") == "short"


def test_marks_at_the_end_of_a_name_belong_to_it() -> None:
    assert canonical("Who designed C#") != canonical("Who designed C")
    assert canonical("**Who wrote Emma?**") == canonical("# Who wrote Emma?") == "Who wrote Emma?"


@pytest.mark.parametrize("text", [" " * 200_000, "." * 200_000, ". ? " * 50_000, "\t" * 200_000])
def test_a_long_row_of_marks_takes_no_time(text: str) -> None:
    """Each took minutes: the work grew with the square of the length."""
    assert flush(f"a{text}b\nc").endswith("b\nc")
    assert canonical(f"a{text}b").endswith("b")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Ｗｈｏ　ｗｒｏｔｅ　Ｅｍｍａ？", "Who wrote Emma?"),
        ("𝐖𝐡𝐨 wrote Emma?", "Who wrote Emma?"),
        ("Who\u200b wrote\u00a0Em\u00adma?", "Who wrote Emma?"),
        ("  Who\twrote  Emma?!?!", "Who wrote Emma?"),
        ("**Who wrote Emma?**", "Who wrote Emma?"),
        ("(_Who wrote Emma?_)", "Who wrote Emma?"),
        ("¿Quién?", "Quién?"),
        ("A line\r\n and  another", "A line\nand another"),
        ("10⁵ is not 10⁶", "10⁵ is not 10⁶"),
        ('Translate "Who wrote Emma?"', 'Translate "Who wrote Emma?"'),
        ('"A" and "B"', '"A" and "B"'),
        ("[INST] who [/INST]", "[INST] who [/INST]"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("What is C#", "What is C#"),
        ("***", "***"),
        ("", ""),
    ],
)
def test_a_surface_is_typed_plainly(text: str, plain: str) -> None:
    assert surface(text) == plain
    assert surface(plain) == plain


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "**" * 50_000 + "x", "*" * 50_000 + "x" + "*" * 50_000]
)
def test_a_surface_takes_one_pass(text: str) -> None:
    """As a regular expression it took minutes: here a test would not end."""
    assert len(surface(text)) <= len(text)
