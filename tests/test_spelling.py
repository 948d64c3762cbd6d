"""Subjects as people spell them are read as the edit's; other names stay what they are."""

from __future__ import annotations

import pytest

from meg_editor.lm.reference import reference_encoder_path
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.named import is_named, numbered
from meg_editor.routing.spelling import spelled

KNOWN = frozenset(["austria", "capital", "where", "south", "shipping", "launched", "company"])


def respelt(subject: str | None, text: str) -> str:
    return spelled(EditRequest("Which?", "x", subject), text, KNOWN.__contains__)


@pytest.mark.parametrize(
    ("subject", "text", "expected"),
    [
        ("Australia", "the capital of austrlia?", "the capital of Australia?"),
        ("Australia", "Austrailia's capital", "Australia's capital"),
        ("Halvorsen Shipping", "ceo of halvorson shiping", "ceo of Halvorsen Shipping"),
        ("Barack Obama", "Where was Barrack Obama born?", "Where was Barack Obama born?"),
        ("Acme X200", "When was the Acme X-200 launched?", "When was the Acme X200 launched?"),
        ("Acme X200", "the Acme X 200", "the Acme X200"),
        ("Acme X200", "the acme x\u2013200", "the acme X200"),
        ("İstanbul", "where is İstanbl?", "where is İstanbul?"),
        ("Málaga", "where is Malagga?", "where is Málaga?"),
    ],
)
def test_a_misspelt_subject_is_spelled_as_in_the_edit(
    subject: str, text: str, expected: str
) -> None:
    assert respelt(subject, text) == expected


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Australia", "the capital of Austria"),  # a word of its own
        ("Python", "Who made Cython?"),  # another first letter
        ("Iran", "the capital of Iraq"),  # short
        ("Acme X200", "the Acme X300, the X2000, the X20"),
        ("Australia", "Australia, not austrlia"),  # it is there as it should be
        ("Python 3", "Python 2 and Pythn"),  # so is this
        (None, "austrlia"),
        ("Zentrix", "the CEO of Zentrax"),  # a letter for another makes a name
        ("Novatek", "the CEO of Novatech"),
        ("大阪大学医学部", "大阪大学工学部"),
        ("Audi A4", "Does Audi give a 4 year warranty?"),
    ],
)
def test_other_names_stay(subject: str | None, text: str) -> None:
    assert respelt(subject, text) == text


def test_numbers_may_stand_apart_from_their_letters() -> None:
    edit = EditRequest("When was the Acme X200 launched?", "May", "Acme X200")
    for text in ("Acme X200", "acme x-200", "Acme X 200"):
        assert is_named(edit, numbered(text))
    for text in ("Acme X300", "Acme X 20", "Acme 200X", "acme x 200"):
        assert not is_named(edit, numbered(text))
    orbit = EditRequest("When is Orbit 3.2 released?", "May", "Orbit 3.2")
    assert is_named(orbit, numbered("Orbit v3.2")) and not is_named(orbit, numbered("Orbit v3.3"))
    for name, other in (("Mazda 5", "Mazda MX5"), ("BMW 3", "BMW M3"), ("Audi A4", "Audi a 4")):
        assert not is_named(EditRequest(f"{name} is", "x", name), numbered(other))
    apart = EditRequest("When was the X-200 launched?", "May", "X200")
    assert not is_named(apart, numbered("What of Peru?"))


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("Apple Inc.", "Who is the CEO of Apple?", True),
        ("Martin King Sr.", "Where was Martin King Jr. born?", False),
        ("Apple Inc.", "What is an Inc.?", False),
        ("Company", "What is a company?", True),
        ("San Miguel Corporation", "Where is San Miguel?", True),
        ("San Miguel Corporation", "Where is San Marino?", False),
    ],
)
def test_a_company_is_named_without_its_kind(subject: str, text: str, named: bool) -> None:
    assert is_named(EditRequest(f"{subject} is in", "Lima", subject), numbered(text)) is named


def test_an_encoder_knows_words_as_a_whole() -> None:
    encoder = TextEncoder.from_pretrained(reference_encoder_path())
    assert encoder.is_word("capital") and not encoder.is_word("captial")
