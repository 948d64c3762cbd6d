"""Does a question ask for something else than an edit, in a word for it? CFO is not CEO.

A verifier reads what a text is about, and takes for the same what has few words apart and is
spoken of alike: offices, dates, numbers, contacts.
"""

from __future__ import annotations

import re

from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words, words_in_order

# Things of one kind, of which a text that names one does not mean another: each by its words.
_KINDS = (
    # offices
    (
        r"ceo|chief executive",
        r"cfo|chief financial|finance (?:chief|director)",
        r"cto|chief technology|chief technical",
        r"coo|chief operating",
        r"cmo|chief marketing",
        r"chair(?:man|woman|person)?",
        r"(?<!vice )president",
        r"vice president|vp|deputy",
        r"secretary|treasurer",
        r"prime minister|premier",
        r"mayor",
        r"governor",
        r"king|queen|monarch",
        r"coach|trainer",
        r"captain",
    ),
    # how to reach it
    (
        r"phone|telephone|call|calls|hotline|dial",
        r"fax",
        r"e mail|email|mailbox",
        r"website|web site|url|homepage|web page",
        r"(?<!mail )(?<!ip )address|street",
        r"zip|post ?code|postal code",
    ),
    # events
    (
        r"born|birth|birthday|birthplace",
        r"die|dies|died|death|dead|killed|buried|burial",
        r"married|marry|marries|wedding",
        r"founded|established|discovered|built|headquartered|headquarters"
        r"|^where (?:is|are)(?: the)?$",
    ),
    (
        r"open|opens|opened|opening|founded|established|began|begin|begins|start|starts|started|starting",
        r"close|closes|closed|closing|dissolved|shut|end|ends|ended|ending|finish|finishes|finished",
    ),
    (r"arrive|arrives|arrival|arrivals", r"depart|departs|departure|departures|leave|leaves"),
    (r"check in", r"check out|checkout"),
    # numbers: sizes, money, counts
    (
        r"height|tall|high",
        r"width|wide",
        r"length|long",
        r"depth|deep",
        r"weight|weigh|weighs|heavy|mass",
        r"area|surface",
        r"volume",
        r"diameter",
        r"population|inhabitants|residents|populous",
        r"temperature|hot|warm|cold",
        r"speed|fast",
        r"age|old",
        r"price|prices|cost|costs|fee",
        r"revenue|revenues|turnover|sales",
        r"profit|profits|earnings|income",
        r"loss|losses",
        r"budget",
        r"salary|wage|wages",
        r"debt|debts",
        r"donation|donations|endowment",
        *(
            rf"(?:how many|number of|count of)(?: \w+){{0,2}}? (?:{each})"
            for each in (
                "moons?|satellites?",
                "rings?",
                "employees|staff|workers|people work",
                "offices|branches|locations",
                "stores|shops|outlets",
                "customers|users|subscribers|clients",
                "members",
                "students|pupils",
                "professors|teachers|lecturers",
                "floors|storeys|stories",
                "rooms|bedrooms",
                "elevators|lifts",
                "seats",
                "runways",
                "terminals",
                "gates",
                "goals",
                "titles|trophies|championships|cups",
                "episodes",
                "seasons",
                "pages",
                "chapters",
            )
        ),
    ),
    # relatives
    (
        r"father|dad",
        r"mother(?! tongue)|mom|mum",
        r"wife|husband|spouse",
        r"brothers?",
        r"sisters?",
        r"sons?",
        r"daughters?",
    ),
    # one of two
    (r"minimum|lowest|least|smallest|min", r"maximum|highest|most|largest|biggest|max"),
    (r"first|oldest|original|earliest", r"last|latest|newest|recent|youngest"),
    (r"breakfast", r"lunch", r"dinner"),
    (r"import|imports|imported", r"export|exports|exported"),
    (r"north|northern", r"south|southern", r"east|eastern", r"west|western"),
    (r"source|rises", r"mouth|flows into|empties into"),
    (r"author|writer|wrote|written", r"illustrator|illustrated", r"publisher|published by"),
    (r"director|directed", r"producer|produced", r"composer|composed"),
    (r"capital", r"currency|money", r"language|languages|speak|spoken", r"anthem", r"flag"),
)
_PATTERNS = tuple(
    tuple(re.compile(rf"\b(?:{each})\b") for each in alternatives) for alternatives in _KINDS
)


def asks_otherwise(edit: EditRequest, question: str) -> bool:
    """Whether a question has a word for something, and an edit one for another of its kind.

    The name of the subject does not count.

    Example:
        >>> edit = EditRequest("The CEO of Apple is", "Lima", "Apple")
        >>> [asks_otherwise(edit, text) for text in ("Apple's CFO?", "Apple's chief executive?")]
        [True, False]
    """
    name = words(edit.subject or "")
    ours, theirs = (_without(name, text) for text in (edit.prompt, question))
    for alternatives in _PATTERNS:
        edited = {place for place, each in enumerate(alternatives) if each.search(ours)}
        if edited:
            other = {place for place, each in enumerate(alternatives) if each.search(theirs)}
            if other and not edited & other:
                return True
    return False


def _without(name: frozenset[str], text: str) -> str:
    return " ".join(word for word in words_in_order(text) if word not in name)
