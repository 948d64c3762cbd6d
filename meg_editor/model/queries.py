"""Queries and token ids as a caller gives them: what is neither is refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from meg_editor.config.input_files import short_repr, type_and_repr

_TEXTS = "queries: expected a text or a list of texts, got"
_ELSEWHERE = "token ids go to generate, and a chat as its chat template makes them"


def query_texts(queries: Any) -> list[str]:
    """The texts of B queries.

    Args:
        queries: a text, or texts in anything that can be iterated over.

    Raises:
        TypeError: anything else.
        ValueError: half of a surrogate pair, which no tokenizer takes.

    Example:
        >>> query_texts("Who wrote Emma?"), query_texts(("a", "b"))
        (['Who wrote Emma?'], ['a', 'b'])
        >>> query_texts(None)
        Traceback (most recent call last):
        ...
        TypeError: queries: expected a text or a list of texts, got NoneType (None); token ids go to
        generate, and a chat as its chat template makes them
    """
    if isinstance(queries, str):
        texts = [queries]
    elif isinstance(queries, bytes | bytearray | Mapping) or not isinstance(queries, Iterable):
        raise TypeError(f"{_TEXTS} {type_and_repr(queries)}; {_ELSEWHERE}")
    else:
        texts = list(queries)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{_TEXTS} {type_and_repr(text)} at {place}; {_ELSEWHERE}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"queries: expected Unicode, got half of a surrogate pair, "
                f"U+{ord(text[error.start]):04X} at character {error.start + 1} of "
                f"{short_repr(text)}; to mend the text: text.encode('utf-16', 'surrogatepass')"
                ".decode('utf-16', 'replace')"
            ) from None
    return texts


def check_ids(ids: Any, embeddings: bool = False) -> None:
    """Check that `ids` are token ids (B, T), or None.

    Args:
        embeddings: they are beside embeddings, and may have no tokens.

    Raises:
        TypeError: they are no tensor.
        ValueError: a tensor of another shape or kind, or of no tokens.

    Example:
        >>> check_ids("Who wrote Emma?")
        Traceback (most recent call last):
        ...
        TypeError: input_ids: expected a tensor of token ids (B, T), got str ('Who wrote Emma?');
        for texts: answer(texts), or generate(**tokenizer(texts, return_tensors="pt"))
    """
    if ids is None:
        return
    expected = "input_ids: expected a tensor of token ids (B, T)"
    if not isinstance(ids, Tensor):
        if isinstance(ids, Mapping):  # a BatchEncoding
            name = type(ids).__name__
            raise TypeError(f"{expected}, got a {name}; pass what it holds: generate(**batch)")
        raise TypeError(
            f"{expected}, got {type_and_repr(ids)}; for texts: answer(texts), or "
            'generate(**tokenizer(texts, return_tensors="pt"))'
        )
    if ids.dim() != 2:
        hint = "; for one prompt: ids.unsqueeze(0)" if ids.dim() == 1 else ""
        raise ValueError(f"{expected}, got one of shape {tuple(ids.shape)}{hint}")
    if ids.is_floating_point():
        raise ValueError(f"{expected}, got {ids.dtype}; embeddings go to inputs_embeds")
    if not ids.shape[1] and not embeddings:
        raise ValueError(
            f"{expected} with T of at least 1, got {tuple(ids.shape)}; begin an empty prompt with "
            "a token such as tokenizer.bos_token_id"
        )
