"""Numbers and other people's texts as they stand in a report."""

from __future__ import annotations

import re
from html import escape
from unicodedata import category

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def size(count: float) -> str:
    """Bytes as text, in powers of 1000.

    Example:
        >>> size(512), size(1313), size(18_500_000)
        ('512 bytes', '1.31 kB', '18.5 MB')
    """
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"


def when(time: str) -> str:
    """A time in ISO 8601, UTC, to the minute.

    Example:
        >>> when("2026-11-27T08:00:12+00:00"), when("")
        ('2026-11-27 08:00 UTC', 'unknown')
    """
    return f"{time[:10]} {time[11:16]} UTC" if time else "unknown"


def html(text: object) -> str:
    """Text as HTML: escaped, and without characters that HTML does not allow.

    Example:
        >>> html("<b> & \\x00")
        '&lt;b&gt; &amp; \ufffd'
    """
    return escape(_visible(str(text)))


def markdown(text: object) -> str:
    """Text as one line of Markdown, which shows it as it is.

    Example:
        >>> print(markdown("*a* <b>\\n[c](d) | `e`"))
        \\*a\\* \\<b\\> \\[c\\](d) \\| \\`e\\`
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(_visible(str(text)).split()))


def _visible(text: str) -> str:
    """Control characters and halves of pairs of code units become U+FFFD."""
    return "".join(
        "\ufffd" if category(c) in ("Cc", "Cs") and c not in "\t\n\r" else c for c in text
    )
