"""Gates: is this query an edit?"""

from meg_editor.routing.gates.base import Gate
from meg_editor.routing.gates.familiarity import FamiliarityGate
from meg_editor.routing.gates.similarity import SimilarityGate
from meg_editor.routing.gates.threshold import Calibration, GateOutcomes, calibrate

# A verified gate retrieves by similarity; the verifier is the router's.
GATES: dict[str, type[Gate]] = {
    "verified": SimilarityGate,
    "similarity": SimilarityGate,
    "familiarity": FamiliarityGate,
}

__all__ = [
    "GATES",
    "Calibration",
    "FamiliarityGate",
    "Gate",
    "GateOutcomes",
    "SimilarityGate",
    "calibrate",
]
