"""Why a prompt is routed as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meg_editor.edits.edit import Edit
from meg_editor.model.meg_model import MeGModel
from meg_editor.routing.routing import Candidate, RoutedQuery


@dataclass(frozen=True)
class Explanation:
    """How a prompt was read, and what decided whether it asks for an edit.

    Attributes:
        text: the turn that was read.
        spans: its parts which the index looked for.
        system: the system text that the verifier reads with it; empty without one.
        routed: the decision.
        considered: the edits that came into question, each with what was found.
        nearest: the one that is answered with, or would be; None without edits.
        verified: whether a verifier decides.
        goes_back: score of the last turn of a dialogue, at least 0 where it may go back to an
            earlier one; None where there is none, any may, or the turn alone is an edit.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(*load_model(hparams), facts, hparams)
        >>> why = Explanation.of(edited, "The capital of France is")
        >>> why.spans, why.nearest.target_new, why.verified
        (('The capital of France is',), 'Lima', True)
    """

    text: str
    spans: Sequence[str]
    system: str
    routed: RoutedQuery
    considered: Sequence[tuple[Edit, Candidate]]
    nearest: Edit | None
    verified: bool
    goes_back: float | None = None

    @classmethod
    def of(cls, model: MeGModel, prompt: str) -> Explanation:
        """By the edits which are in force now."""
        routing = model.route(prompt)
        edits, routed = routing.in_force.edition.edits, routing[0]
        given = model.reader.read(prompt)
        read = given.of_spans(routing.spans[0])  # of an earlier turn, where that was gone back to
        alone = routed.is_edit and routed.read_with == "turn"  # earlier turns did not matter
        scores = model.router.goes_back([given]) if given.dialogue and not alone else None
        reads_system = model.verifier is not None and model.verifier.system is not None
        return cls(
            text=read.text,
            spans=read.spans if model.verifier else read.closing,
            system=given.system if reads_system else "",
            routed=routed,
            considered=[(edits[candidate.edit], candidate) for candidate in routed.candidates],
            nearest=edits[routed.edit] if routed.edit >= 0 else None,
            verified=model.verifier is not None,
            goes_back=None if scores is None else scores.item(),
        )
