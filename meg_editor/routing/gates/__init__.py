"""Is this query an edit? One file per answer to that question."""

from meg_editor.routing.gates.base import Gate
from meg_editor.routing.gates.calibration import Calibration, Trial, calibrate
from meg_editor.routing.gates.familiarity import FamiliarityGate
from meg_editor.routing.gates.similarity import SimilarityGate

GATES: dict[str, type[Gate]] = {"similarity": SimilarityGate, "familiarity": FamiliarityGate}

__all__ = [
    "GATES",
    "Calibration",
    "FamiliarityGate",
    "Gate",
    "SimilarityGate",
    "Trial",
    "calibrate",
]
