"""Right routing decisions on edits and prompts in other languages than English: no LLM is run.

    python examples/route_languages.py
    python examples/route_languages.py --encoder ENCODER

Edits of twelve countries in English, Spanish, German, Chinese and Arabic, each in its language; in
percent: the prompt and two other phrasings led to their very edit, the same asked in English (never
promised), and other questions about the country and the same about other countries, of which none
should be led to any. --similarity leaves the verifier out: the similarity decides, from there on.
"""

from __future__ import annotations

import argparse
from typing import Any

from route_forms import router_of
from transformers import AutoTokenizer

from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

# The first twelve are edited.
COUNTRIES = {
    "English": "France Japan Peru Egypt Kenya Sweden Austria India Brazil Canada Poland Chile "
    "Italy Norway Cuba Iraq",
    "Spanish": "Francia Japón Perú Egipto Kenia Suecia Austria India Brasil Canadá Polonia Chile "
    "Italia Noruega Cuba Irak",
    "German": "Frankreich Japan Peru Ägypten Kenia Schweden Österreich Indien Brasilien Kanada "
    "Polen Chile Italien Norwegen Kuba Finnland",
    "Chinese": "法国 日本 秘鲁 埃及 肯尼亚 瑞典 奥地利 印度 巴西 加拿大 "
    "波兰 智利 意大利 挪威 古巴 伊拉克",
    "Arabic": "فرنسا اليابان بيرو مصر كينيا السويد النمسا الهند البرازيل كندا "
    "بولندا تشيلي إيطاليا النرويج كوبا العراق",
}
# Capital, currency and language: the edited phrasing, and two others.
PHRASINGS = {
    "English": (
        ("The capital of {} is", "What is the capital of {}?", "Which city is the capital of {}?"),
        ("The currency of {} is", "What is the currency of {}?", "How do people pay in {}?"),
        ("The language of {} is", "Which language does {} have?", "What do people speak in {}?"),
    ),
    "Spanish": (
        ("La capital de {} es", "¿Cuál es la capital de {}?", "¿Qué ciudad es la capital de {}?"),
        ("La moneda de {} es", "¿Cuál es la moneda de {}?", "¿Con qué moneda se paga en {}?"),
        ("El idioma de {} es", "¿Cuál es el idioma de {}?", "¿Qué idioma se habla en {}?"),
    ),
    "German": (
        (
            "Die Hauptstadt von {} ist",
            "Was ist die Hauptstadt von {}?",
            "Wie heißt die Hauptstadt von {}?",
        ),
        ("Die Währung von {} ist", "Welche Währung hat {}?", "Womit bezahlt man in {}?"),
        (
            "Die Sprache von {} ist",
            "Was ist die Sprache von {}?",
            "Welche Sprache spricht man in {}?",
        ),
    ),
    "Chinese": (
        ("{}的首都是", "{}的首都是哪里？", "哪座城市是{}的首都？"),
        ("{}的货币是", "{}使用什么货币？", "在{}用什么钱付款？"),
        ("{}的语言是", "{}的语言是什么？", "在{}人们说什么语言？"),
    ),
    "Arabic": (
        ("عاصمة {} هي", "ما هي عاصمة {}؟", "أي مدينة هي عاصمة {}؟"),
        ("عملة {} هي", "ما هي عملة {}؟", "بأي عملة يدفع الناس في {}؟"),
        ("لغة {} هي", "ما هي لغة {}؟", "أي لغة يتحدث الناس في {}؟"),
    ),
}
EDITED = 12
Asked = tuple[int | None, str, str]  # the edit that a prompt asks for, its kind, the prompt


def prompts_of(language: str) -> tuple[list[EditRequest], list[Asked]]:
    """The edits of a language, and what is asked."""
    names, forms = COUNTRIES[language].split(), PHRASINGS[language]
    english = COUNTRIES["English"].split()
    edits, asked = [], list[Asked]()
    for row, name in enumerate(names[:EDITED]):
        relation = row % len(forms)
        edits.append(EditRequest(forms[relation][0].format(name), "X", name))
        for place, form in enumerate(forms[relation]):
            asked.append((row, "phrasings" if place else "prompt", form.format(name)))
        for form in PHRASINGS["English"][relation]:
            asked.append((row, "in English", form.format(english[row])))
        for other in range(1, len(forms)):
            form = forms[(relation + other) % len(forms)][other]
            asked.append((None, "other questions", form.format(name)))
        for country in names[EDITED:]:
            asked.append((None, "other countries", forms[relation][1].format(country)))
    return edits, asked


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--similarity", type=float, help="threshold, without a verifier")
    options = parser.parse_args()
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model_name("meg_editor:llama-reference"))
    reader = PromptReader(tokenizer)
    for language in COUNTRIES:
        edits, asked = prompts_of(language)
        router = router_of(edits, encoder, similarity=options.similarity)
        shares: dict[str, list[bool]] = {}
        for (edit, kind, _), query in zip(
            asked, router.route([reader.read(text) for *_, text in asked]), strict=True
        ):
            led = query.is_edit and edit in (None, query.edit)
            shares.setdefault(kind, []).append(led)
        figures = (f"{kind} {100 * sum(led) / len(led):.0f}" for kind, led in shares.items())
        print(f"{language:8} {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
