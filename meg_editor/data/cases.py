"""What it takes to judge one edit."""

from __future__ import annotations

from dataclasses import dataclass, field

from meg_editor.requests import EditRequest


@dataclass(frozen=True)
class EvaluationCase:
    """An edit and the prompts that tell whether it worked.

    Attributes:
        request: the edit.
        truth: what the unedited model answers, where known.
        paraphrases: other ways to ask (Generality); no fitting stage may see them.
        locality: kind -> prompts whose answers must not change (Locality).
        portability: (question, new answer) where the answer follows from the edit in two hops.
    """

    request: EditRequest
    truth: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: dict[str, tuple[str, ...]] = field(default_factory=dict)
    portability: tuple[tuple[str, str], ...] = ()
