"""The sentences of the world as tokens: what the LM is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from meg_editor.data.world.facts import GROUPS, Fact, World

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


def build_tokenizer(world: World, out: Path, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE over every sentence of the world; a word is one token wherever it stands."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = (
        f"{prompt} {fact.answer}"
        for fact in world.facts
        for group in GROUPS
        for prompt in world.prompts(fact, group)
    )
    chat = ["User: What is it?\nAssistant: It\n"] * 20_000
    tokenizer.train_from_iterator([*sentences, *chat], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=256
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    return fast


@dataclass
class Sentences:
    """Every (fact, phrasing) as token ids; `answers[i]` includes the end of text."""

    prompts: list[list[list[int]]]  # fact -> phrasing -> ids
    chats: list[list[list[int]]]
    answers: list[list[int]]

    @classmethod
    def of(cls, world: World, tokenizer: PreTrainedTokenizerFast) -> Sentences:
        def ids(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts)["input_ids"] if texts else []

        def phrased(fact: Fact) -> list[str]:
            return [prompt for group in GROUPS for prompt in world.prompts(fact, group)]

        eos = tokenizer.eos_token_id
        return cls(
            [ids(phrased(fact)) for fact in world.facts],
            [ids([f"User: {p}\nAssistant:" for p in phrased(fact)]) for fact in world.facts],
            [answer + [eos] for answer in ids([fact.answer for fact in world.facts])],
        )

    def epoch(
        self, rng: random.Random, facts: list[int], newline: list[int], shots: float, chat: float
    ) -> list[Row]:
        """Each fact once, in a random phrasing; label -100 where there is no loss.

        A share `shots` of the facts goes into few-shot sequences, a share `chat` into chat turns.
        """
        order = rng.sample(facts, len(facts))
        rows, position = [], 0
        while position < len(order):
            count = 1 if rng.random() >= shots / 4 else rng.randint(2, 6)
            ids: list[int] = []
            labels: list[int] = []
            chosen = order[position : position + count]
            position += count
            chatting = rng.random() < chat
            for turn, fact in enumerate(chosen):
                prompt = rng.choice((self.chats if chatting else self.prompts)[fact])
                answer = self.answers[fact]
                last = turn == len(chosen) - 1
                whole = rng.random() < 0.1
                ids += prompt + (answer if last else answer[:-1] + newline)
                labels += prompt if whole else [-100] * len(prompt)
                labels += answer if last else answer[:-1] + [-100] * len(newline)
            rows.append(Row(ids, labels, chosen))
        return rows


@dataclass
class Row:
    """One training sequence and the facts in it."""

    ids: list[int]
    labels: list[int]
    facts: list[int]


def batches(
    rows: list[Row], tokens: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[Row]]]:
    """Length-bucketed, right-padded batches of about `tokens` tokens, in random order."""
    rows = sorted(rows, key=lambda row: (len(row.ids), rng.random()))
    groups: list[list[Row]] = [[]]
    for row in rows:
        if len(groups[-1]) * len(row.ids) >= tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        width = len(group[-1].ids)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in group])
        labels = torch.tensor([r.labels + [-100] * (width - len(r.labels)) for r in group])
        yield ids, labels, group
