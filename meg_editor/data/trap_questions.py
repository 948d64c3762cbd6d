"""Questions that look like an edit and have another answer: negated, or asking for the subject."""

from __future__ import annotations

_CONTRACTED = {
    **{word: f"{word}n't" for word in ("is", "are", "was", "were", "does", "do", "did")},
    **{word: f"{word}n't" for word in ("has", "have", "had", "could", "would", "should")},
    "can": "can't",
    "will": "won't",
    "must": "mustn't",
}
_AUXILIARIES = frozenset([*_CONTRACTED, "be", "been"])


def negated(prompt: str, subject: str | None = None) -> str | None:
    """The negated prompt, to which the edit's target is no answer.

    None for a question without an auxiliary verb.

    Example:
        >>> negated("The capital of France is"), negated("Where was Ada born?", "Ada")
        ('The capital of France is not', 'Where was Ada not born?')
    """
    words = prompt.split()
    if not prompt.rstrip().endswith("?"):
        ends_well = bool(words) and words[-1] in _AUXILIARIES
        return f"{prompt.rstrip()} not" if ends_well else f"It is not the case that {prompt}"
    place = next((row for row, word in enumerate(words) if word.lower() in _AUXILIARIES), None)
    if place is None:
        return None
    name = (subject or "").split()
    if name and words[place + 1 : place + 1 + len(name)] == name:
        place += len(name)
    return " ".join([*words[: place + 1], "not", *words[place + 1 :]])


def contracted(prompt: str) -> str | None:
    """The prompt negated by a contraction; None without a verb that has one.

    Example:
        >>> contracted("Where was Ada born?")
        "Where wasn't Ada born?"
    """
    words = prompt.split()
    place = next((row for row, word in enumerate(words) if word.lower() in _CONTRACTED), None)
    if place is None:
        return None
    verb = _CONTRACTED[words[place].lower()]
    words[place] = verb.capitalize() if words[place][0].isupper() else verb
    return " ".join(words)


def counter_asked(prompt: str, subject: str | None, target: str) -> str | None:
    """The inverse question: the answer is given, the subject is the new answer.

    None if the prompt does not name the subject.

    Example:
        >>> counter_asked("The capital of France is", "France", "Lima")
        'The capital of which one is Lima?'
    """
    if not subject or subject not in prompt:
        return None
    question = prompt.replace(subject, "which one").strip()
    if question.endswith("?"):
        return f"{question.rstrip('? ')}, if the answer is {target}?"
    return f"{question} {target}?"
