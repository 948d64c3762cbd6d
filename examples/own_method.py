"""A method of your own in the benchmark: plain fine-tuning of one FFN, in thirty lines.

meg-editor benchmark ... --methods unedited,meg,ft=examples/own_method.py
"""

import torch
import torch.nn.functional as F

from meg_editor.lm.ffn import find_ffn
from meg_editor.lm.tokens import Batch, encode_example, target_logits

hparams = {"layer": 0, "steps": 20, "rate": 1e-3, "rows": 64, "seed": 0}


def apply_to_model(model, tok, requests, hparams, **kwargs):
    """EasyEdit's signature: the edited model, and the old values of the changed weights."""
    place = find_ffn(model, hparams["layer"]).write
    weights = dict(model.get_submodule(place).named_parameters(prefix=place))
    old = {name: weight.detach().clone() for name, weight in weights.items()}
    examples = [encode_example(tok, r["prompt"], r["target_new"]) for r in requests]
    generator = torch.Generator().manual_seed(hparams["seed"])
    optimizer = torch.optim.Adam(weights.values(), lr=hparams["rate"])
    model.get_submodule(place).requires_grad_(True)
    for _ in range(hparams["steps"]):
        for rows in torch.randperm(len(examples), generator=generator).split(hparams["rows"]):
            batch = Batch.of([examples[row] for row in rows], model.device)
            logits, targets, _ = target_logits(model, batch)
            optimizer.zero_grad()
            F.cross_entropy(logits, targets).backward()
            optimizer.step()
    model.get_submodule(place).requires_grad_(False)
    return model, old
