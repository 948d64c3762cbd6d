"""Names of subjects, known and invented, and names that are nearly the same."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_BEGINS = [
    *("b", "br", "c", "ch", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n"),
    *("p", "qu", "r", "s", "sh", "st", "t", "tr", "v", "w", "z"),
]
_MIDDLES = ["a", "e", "i", "o", "u", "ai", "ea", "ie", "oo", "ou"]
_PRAISE = ["the famous", "the well-known", "modern", "beautiful", "good old", "mighty"]
_TITLES = ["Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Sir"]
_PARTICLES = frozenset(
    ["the", "of", "van", "von", "de", "da", "di", "del", "la", "le", "al", "ibn"]
)
_ORDINAL = re.compile(r"[IVX]+|[JS]r\.?")
_ENDS = ["", "", "n", "r", "l", "s", "x", "m", "nd", "rt", "ck", "th"]


def draw_name(rng: random.Random, known: Sequence[str]) -> str:
    """One of the known names, their words in another order of the draw, or invented ones.

    Example:
        >>> draw_name(random.Random(0), ["Ada Lovelace", "Emmy Noether"])
        'Brundnealnairt Pildert'
    """
    name, chance = rng.choice(known), rng.random()
    if chance < 0.5:
        return name
    if chance < 0.7:
        other = rng.choice(known).split()
        return " ".join([*name.split()[:-1], other[-1]])
    return " ".join(_invented(rng) for _ in name.split()[:3])


def similar_name(rng: random.Random, name: str, known: Sequence[str]) -> str:
    """Another name: often one which shares words with `name`, or all but a syllable.

    The last words of a name may mean the same, and so does another article: these are none.

    Example:
        >>> similar_name(random.Random(2), "Ada Lovelace", ["Ada Lovelace", "Emmy Noether"])
        'Trulsort'
    """
    words, other = name.split(), rng.choice(known).split()
    place, chance = rng.randrange(len(words)), rng.random()
    if chance < 0.25:
        words = other
    elif chance < 0.5:
        words[place] = rng.choice(other)
    elif chance < 0.7:
        words[place] = _with_another_syllable(rng, words[place])
    elif chance < 0.85 and len(words) > 1:
        words.pop()
    else:
        words.insert(rng.randrange(len(words) + 1), rng.choice(other))
    core = _core(words)
    return " ".join(words) if core and core != _core(name.split()) else _invented(rng)


def other_wording(
    rng: random.Random, name: str, noun: str, is_person: bool = False, in_full: bool = False
) -> str:
    """The same name in other words: its article, a title, what it is, a surname, an initial.

    Args:
        noun: what is named, such as "river".
        in_full: whether all of the name's words stay.

    Example:
        >>> rng = random.Random(0)
        >>> sorted({other_wording(rng, "the Danube", "river") for _ in range(20)})[:2]
        ['Danube', 'Danube (river)']
    """
    bare = name[4:] if name.lower().startswith("the ") else name
    words = bare.split()
    common = [bare.lower(), f"the {noun} {bare}", f"{bare} ({noun})"]
    common.append(f"{rng.choice(_PRAISE)} {bare}")
    if not is_person:
        return rng.choice([*common, *[bare, f"the {bare}", f"The {bare}"] * 2])
    titled = [f"{rng.choice(_TITLES)} {bare}", f"the {noun} {bare}"]
    # "Catherine the Great" is not Ms. Great, and "Margrethe II" not Mr. II.
    if in_full or len(words) < 2 or set(words) & _PARTICLES or _ORDINAL.fullmatch(words[-1]):
        return rng.choice([*common, *titled])
    first, last = words[0], words[-1]
    initials = [f"{first[0]}. {last}", f"{first} {rng.choice('ABEJLMRT')}. {last}"]
    return rng.choice([*common, *titled, *initials, *[last, f"{rng.choice(_TITLES)} {last}"] * 2])


def _core(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lower() not in ("a", "an", "the")]


def _syllable(rng: random.Random) -> str:
    return rng.choice(_BEGINS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)


def _invented(rng: random.Random) -> str:
    return "".join(_syllable(rng) for _ in range(rng.choice((1, 2, 2, 3)))).capitalize()


def _with_another_syllable(rng: random.Random, word: str) -> str:
    start = rng.randrange(max(1, len(word) - 2))
    changed = word[:start] + _syllable(rng) + word[start + rng.randint(1, 3) :]
    return changed.capitalize() if word[:1].isupper() else changed
