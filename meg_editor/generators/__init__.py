"""Query embeddings -> neurons. One file per generator."""

from meg_editor.generators.bank import NeuronBank
from meg_editor.generators.base import NeuronScaling, WeightGenerator
from meg_editor.generators.dit import DiTGenerator
from meg_editor.generators.mlp import MLPGenerator

GENERATORS: dict[str, type[WeightGenerator]] = {
    "dit": DiTGenerator,
    "mlp": MLPGenerator,
    "bank": NeuronBank,
}

__all__ = [
    "GENERATORS",
    "DiTGenerator",
    "MLPGenerator",
    "NeuronBank",
    "NeuronScaling",
    "WeightGenerator",
]
