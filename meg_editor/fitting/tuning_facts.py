"""Facts which tune and calibrate: shared by many fits, looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from functools import cached_property
from typing import Any, TypeAlias, cast, overload
from weakref import WeakKeyDictionary

from meg_editor.lm.protocols import Tokenizer
from meg_editor.requests.request import EditRequest, check_several, request_of
from meg_editor.runtime.artifacts import digest

Facts: TypeAlias = Iterable[EditRequest | Mapping[str, Any]]


class TuningFacts(Sequence[EditRequest]):
    """Facts of a fitting stage, none of them edited, with their digests.

    To digest hundreds of facts takes longer than to edit one: give the same object to many fits.

    Args:
        standard: they are those of the reference world, and not the user's own.

    Example:
        >>> facts = TuningFacts([EditRequest("2 + 2 =", "5"), EditRequest("2 + 3 =", "6")])
        >>> len(facts), len(facts.without({facts[0].key}))
        (2, 1)
        >>> facts.without({"another prompt"}) is facts
        True
    """

    def __init__(self, facts: Sequence[EditRequest], *, standard: bool = False) -> None:
        self._facts, self.standard = tuple(facts), standard
        self._tokens: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()

    @classmethod
    def of(cls, facts: Facts, name: str = "tuning") -> TuningFacts:
        """`facts` themselves, if they are such an object; else from requests or mappings.

        Args:
            name: what they are called in an error.

        Raises:
            RequestError: they are no list, or one of them is no request.

        Example:
            >>> TuningFacts.of([{"prompt": "2 + 2 =", "target_new": "5"}])[0].target_new
            '5'
        """
        if isinstance(facts, cls):
            return facts
        check_several(facts, f"facts for {name}")
        return cls([request_of(fact, f"{name}, fact {place}") for place, fact in enumerate(facts)])

    @overload
    def __getitem__(self, row: int) -> EditRequest: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[EditRequest, ...]: ...
    def __getitem__(self, row: int | slice) -> EditRequest | tuple[EditRequest, ...]:
        return self._facts[row]

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[EditRequest]:
        return iter(self._facts)

    def without(self, edited: Set[str]) -> TuningFacts:
        """Those whose key is not in `edited`; the same object if that is all of them."""
        if edited.isdisjoint(self._keys):
            return self
        rows = zip(self._facts, self._keys, strict=True)
        left = [fact for fact, key in rows if key not in edited]
        return TuningFacts(left, standard=self.standard)

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(fact.key for fact in self._facts)

    @cached_property
    def digest(self) -> str:
        """Digest of everything the facts hold."""
        return digest(
            [
                [f.prompt, f.target_new, f.subject, f.rephrases, f.locality_prompts]
                for f in self._facts
            ]
        )

    def tokens_digest(self, tokenizer: Tokenizer) -> str:
        """Digest of the tokens of all texts of the facts."""
        # A tokenizer may be changed: added tokens, another beginning.
        now = [len(cast(Sized, tokenizer)), tokens_of(tokenizer, self._facts[:1])]
        before, result = self._tokens.get(tokenizer, (None, ""))
        if now != before:
            result = digest(tokens_of(tokenizer, self._facts))
            self._tokens[tokenizer] = (now, result)
        return result


def tokens_of(tokenizer: Tokenizer, facts: Sequence[EditRequest]) -> list[list[int]]:
    """Tokens of all texts of facts, one after another.

    Example:
        >>> tokens_of(lambda texts: {"input_ids": [[len(text)] for text in texts]},
        ...           [EditRequest("2 + 2 =", "5")])
        [[7], [1]]
    """
    texts = [
        text
        for fact in facts
        for text in (fact.prompt, fact.target_new, *fact.rephrases, *fact.locality_prompts)
    ]
    return [list(row) for row in tokenizer(texts)["input_ids"]] if texts else []
