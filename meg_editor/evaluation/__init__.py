"""Does the edit work? Metrics, their evaluation on a model, and the report."""

from meg_editor.evaluation.evaluate import evaluate
from meg_editor.evaluation.metrics import GateMatrix, Pair, Scores
from meg_editor.evaluation.questions import MAX_NEW_TOKENS, Question, questions_of
from meg_editor.evaluation.result import Evaluation

__all__ = [
    "MAX_NEW_TOKENS",
    "Evaluation",
    "GateMatrix",
    "Pair",
    "Question",
    "Scores",
    "evaluate",
    "questions_of",
]
