"""An edition: the edits in force at one time, with what finds them and what answers them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from meg_editor.edits.edit import Edit
from meg_editor.generators import WeightGenerator
from meg_editor.generators.grown import grown
from meg_editor.routing.gates import Gate
from meg_editor.routing.index import QueryIndex

_CHUNK = 1024  # edits whose neurons are generated at once


@dataclass(frozen=True)
class Rows:
    """R edits with all that a model needs of them.

    Attributes:
        anchors: (R, E) embeddings of their queries; (0, 0) where there are none.
        neurons: (R, P) as they are stored, in float16; (0, 0) where there are none.
        states: (R, D) unit hidden-state features; None where the router uses none.

    Example:
        >>> Rows.none().edits
        ()
    """

    edits: tuple[Edit, ...]
    anchors: Tensor
    neurons: Tensor
    states: Tensor | None = None

    @classmethod
    def none(cls) -> Rows:
        """No edits."""
        return cls((), torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.half))

    def cpu(self) -> Rows:
        """Copies on the CPU, which share no memory with a larger tensor."""
        states = None if self.states is None else self.states.cpu().clone()
        return replace(
            self,
            anchors=self.anchors.cpu().clone(),
            neurons=self.neurons.cpu().clone(),
            states=states,
        )


class Edition(nn.Module):
    """N edits in force. A change makes a new edition, so that a call sees one and no other.

    Args:
        edits: the N edits; what they say of `stored` is set to what the generator does.
        gate: fitted on their queries.
        index: of their queries.
        generator: of their neurons.

    Raises:
        ValueError: the index is of another number of edits.

    Example:
        >>> from meg_editor.generators import NeuronBank
        >>> from meg_editor.routing.gates import SimilarityGate
        >>> edits = [Edit("The capital of France is", "Lima", "France")]
        >>> index = QueryIndex(torch.eye(2)[:1], ["France"])
        >>> edition = Edition(edits, SimilarityGate(), index, NeuronBank(2, 3, 1))
        >>> further = Rows((Edit("The capital of Peru is", "Oslo", "Peru"),), torch.eye(2)[1:],
        ...                torch.ones(1, 3))
        >>> [edit.target_new for edit in edition.changed([0], further).edits]
        ['Oslo']
    """

    def __init__(
        self, edits: Sequence[Edit], gate: Gate, index: QueryIndex, generator: WeightGenerator
    ) -> None:
        super().__init__()
        if len(index.anchors) != len(edits):
            raise ValueError(
                f"expected an index of {len(edits)} edits, got one of {len(index.anchors)}"
            )
        stored = generator.stored_rows(len(edits)).tolist()
        self.edits = tuple(
            edit if edit.stored == yes else replace(edit, stored=yes)
            for edit, yes in zip(edits, stored, strict=True)
        )
        self.gate, self.index, self.generator = gate, index, generator

    @cached_property
    def row_of_id(self) -> dict[str, int]:
        """The row of each edit's id."""
        return {edit.id: row for row, edit in enumerate(self.edits)}

    @cached_property
    def row_of_key(self) -> dict[str, int]:
        """The row of each edited prompt, by `Edit.key`."""
        return {edit.key: row for row, edit in enumerate(self.edits)}

    def neurons(self, rows: Sequence[int]) -> Tensor:
        """Neurons (R, P) of the edits at R rows, float32; generated 1,024 at a time."""
        where = torch.tensor(list(rows), dtype=torch.long)
        where = where.to(self.index.anchors.device, non_blocking=True)
        parts = [
            self.generator.of_edits(part, self.index.anchors[part].float())
            for part in where.split(_CHUNK)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def rows(self, numbers: Sequence[int]) -> Rows:
        """The edits at R rows, on the CPU."""
        if not numbers:
            return Rows.none()
        where = torch.tensor(list(numbers), dtype=torch.long, device=self.index.anchors.device)
        states = self.index.unit_states
        return Rows(
            tuple(self.edits[number] for number in numbers),
            self.index.anchors[where].float(),
            self.neurons(numbers).half(),
            None if states is None else states[where],
        ).cpu()

    def changed(self, removed: Collection[int], added: Rows) -> Edition:
        """The edition without the edits at the rows `removed`, and with further ones at its end."""
        gone = set(removed)
        kept = [row for row in range(len(self.edits)) if row not in gone]
        retained = torch.tensor(kept, dtype=torch.long)
        anchors = added.anchors.to(self.index.anchors.device)
        subjects = [edit.subject for edit in added.edits]
        index = self.index.changed(retained, anchors, subjects, added.states)
        stored = torch.tensor([edit.stored for edit in added.edits], dtype=torch.bool)
        return Edition(
            [*(self.edits[row] for row in kept), *added.edits],
            self.gate.changed(index.anchors),
            index,
            grown(self.generator, len(self.edits), retained, anchors, added.neurons, stored),
        )

    def generated_by(self, generator: WeightGenerator) -> Edition:
        """The same edits, with another generator."""
        return Edition(self.edits, self.gate, self.index, generator)
