"""Query embeddings -> neurons. One file per generator."""

from meg_editor.generators.bank import NeuronBank
from meg_editor.generators.base import FittableGenerator, NeuronScaling, WeightGenerator
from meg_editor.generators.dit import DiTGenerator
from meg_editor.generators.mlp import MLPGenerator

GENERATORS: dict[str, type[FittableGenerator]] = {
    "dit": DiTGenerator,
    "mlp": MLPGenerator,
    "bank": NeuronBank,
}

__all__ = [
    "GENERATORS",
    "DiTGenerator",
    "FittableGenerator",
    "MLPGenerator",
    "NeuronBank",
    "NeuronScaling",
    "WeightGenerator",
]
