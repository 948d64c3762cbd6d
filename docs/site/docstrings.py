"""griffe extension: docstrings as this package writes them, in the words of griffe."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
_NAMES = re.compile(r"^(\s+(?:\w+, )*\w+,)\n\s+((?:\w+, )*\w+: )", re.MULTILINE)


class Docstrings(Extension):
    """An `Example:` is code, not a quotation; names over two lines stand on one."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Of every module, class, function and attribute."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _NAMES.sub(r"\1 \2", text)
