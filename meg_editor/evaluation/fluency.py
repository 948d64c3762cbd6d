"""Text quality: n-gram entropy (Zhang et al., 2018) and perplexity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from meg_editor.lm.devices import input_device
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, Example, by_length
from meg_editor.model.routed_model import RoutedModel

_MAX_LOSS = 700.0  # nats per token; exp of more is no float
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # ROME's and EasyEdit's


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies of 2- and 3-grams of words, in bits: Σ_n w_n H_n / 2.

    H_n = -Σ p log2 p over the n-grams of the text. A text that repeats itself is near 0.

    Example:
        >>> round(ngram_entropy("a b c d"), 2), round(ngram_entropy("no no no no"), 2)
        (1.19, 0.0)
    """
    words = text.split()
    total = 0.0
    for n, weight in _WEIGHTS.items():
        counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        whole = counts.total()
        total -= weight * sum(c / whole * math.log2(c / whole) for c in counts.values())
    return total / len(_WEIGHTS)


@torch.no_grad()
def perplexity(
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    rows: int = 32,
    queries: Sequence[str] | None = None,
) -> float:
    """exp of the mean negative log-likelihood per token over all `texts`, the first tokens given.

    `model` is anything which maps `input_ids` to `.logits`. NaN if there is no second token, or of
    NaN logits; infinite if it is too large for a float.

    Args:
        queries: what a model which routes decides by, as a text with its answer is no query;
            default: `texts`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> perplexity(model, tokenizer, ["The capital of France is Paris"]) < 100
        True
    """
    ids = prompt_tokens(tokenizer, texts)
    asked = zip(ids, texts if queries is None else queries, strict=True)
    pairs = [(Example(row[:1], row[1:]), query) for row, query in asked if len(row) > 1]
    examples = [example for example, _ in pairs]
    loss, count = 0.0, 0
    for chunk in by_length([len(example) for example in examples], rows):
        batch = Batch.of([examples[index] for index in chunk], input_device(model))
        # Not `target_logits`: a model which routes must see the whole forward pass.
        rows_asked = [pairs[index][1] for index in chunk]
        with model.routed(rows_asked) if isinstance(model, RoutedModel) else nullcontext():
            output = model(input_ids=batch.ids, use_cache=False)
            logits = output[0] if isinstance(output, tuple) else output.logits
            logits = logits.float().flatten(0, 1)
        loss += float(F.cross_entropy(logits, batch.labels.flatten(), reduction="sum"))
        count += sum(len(examples[index].target) for index in chunk)
    if not count:
        return math.nan
    return math.inf if loss / count > _MAX_LOSS else math.exp(loss / count)
