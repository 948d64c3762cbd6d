"""Prompts as tokens that an answer can follow, whatever the tokenizer puts behind a text."""

from __future__ import annotations

from collections.abc import Sequence

from meg_editor.lm.protocols import Tokenizer

_SAMPLE = "a"  # any text: what is put around it is the same for all


def prompt_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of B texts, unpadded: with BOS if the tokenizer adds it, never with EOS.

    Some tokenizers end every text with EOS (add_eos_token): the prompt would be over, and its last
    token, where hidden states are read, that of no word.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> prompt_tokens(tokenizer, ["Emma"]) == [tokenizer("Emma")["input_ids"]]
        True
    """
    if not texts:
        return []
    rows = tokenizer(list(texts))["input_ids"]
    count = len(tokens_around(tokenizer)[1])
    return [list(row[: len(row) - count]) for row in rows]


def tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts in front of every text, and behind it.

    In front mostly BOS; "[gMASK]<sop>" in GLM, EOS in BioGPT. Behind it mostly nothing, or EOS.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> tokens_around(tokenizer)
        ([], [])
    """
    whole = list(tokenizer(_SAMPLE)["input_ids"])
    bare = list(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"])
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            return whole[:before], whole[before + len(bare) :]
    return [], []
