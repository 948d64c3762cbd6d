"""The text encoder which tells apart who and what a sentence asks about."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from schedule import cosine
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from meg_editor.data.world.facts import World
from meg_editor.runtime.precision import bfloat16


def train_encoder(world: World, tokenizer_dir: Path, out: Path, args: argparse.Namespace) -> None:
    """A BERT trained to tell apart who and what a sentence asks about, whatever the phrasing.

    Contrastive pairs: two phrasings of one relation around one subject (EDIT, those PSEUDO ones
    that do not calibrate thresholds, and the many of paraphrases.yaml), against the same subject
    in other relations and a similar subject in the same one. Subjects are random words, names put
    together from word pieces and the PSEUDO split: no fact which may be edited is seen.
    """
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = encoder_tokenizer(tokenizer_dir, out)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=768,
        max_position_embeddings=128,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertModel(config, add_pooling_layer=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    vocabulary = sorted(tokenizer.get_vocab())
    words = [w[1:] for w in vocabulary if w[0] == "Ġ" and len(w) > 3 and w[1:].isalpha()]
    pieces = [w for w in vocabulary if w.isascii() and w.isalpha() and 2 <= len(w) <= 6]
    pseudo = sorted({fact.subject for fact in world.in_split("pseudo")})
    relations = list(world.phrasings)
    composed = paraphrases(world)
    ways = {r: (world.tuning_phrasings(r), composed[r], composed[r]) for r in relations}

    def subject() -> list[list[str]]:
        """A name: words, each made of parts."""
        draw = rng.random()
        if draw < 0.2:
            return [[word] for word in rng.choice(pseudo).split()]
        if draw < 0.6:
            return [[rng.choice(words)] for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        count = rng.choice((1, 1, 2))
        return [
            [rng.choice(pieces).title(), *rng.choices(pieces, k=rng.choice((1, 2)))]
            for _ in range(count)
        ]

    def similar(name: list[list[str]]) -> list[list[str]]:
        """Another name which differs in one part of one word."""
        name = [list(word) for word in name]
        word = rng.choice(name)
        word[rng.randrange(len(word))] = rng.choice(words if len(word) == 1 else pieces)
        return name

    def say(template: str, name: list[list[str]]) -> str:
        """A sentence, now and then without some of its words: tests are worded differently."""
        remaining = [w for w in template.split() if "{}" in w or rng.random() > 0.08]
        return " ".join(remaining).format(" ".join("".join(word) for word in name))

    def encode(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with bfloat16("cpu"):
            states = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.normalize(states.last_hidden_state[:, 0].float(), dim=-1)

    start, losses = time.time(), []
    while (progress := (time.time() - start) / (60 * args.encoder_minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (len(losses) + 1) / 100) * cosine(progress)
        anchors, positives = [], []
        for _ in range(48):
            name = subject()
            relation, other, third = rng.sample(relations, 3)
            pairs = ((name, relation), (name, other), (name, third), (similar(name), relation))
            for who, what in pairs:
                first, second = (rng.choice(rng.choice(ways[what])) for _ in range(2))
                anchors.append(say(first, who))
                positives.append(say(second, who))
        logits = encode(anchors) @ encode(positives).T / 0.05
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(
                f"encoder {time.time() - start:5.0f} s  step {len(losses)}  loss {mean:.4f}",
                flush=True,
            )
    model.to(torch.float16).save_pretrained(out)


def paraphrases(world: World) -> dict[str, list[str]]:
    """Relation -> further templates, from paraphrases.yaml; none is a TEST phrasing."""
    parts = yaml.safe_load(Path(__file__).with_name("paraphrases.yaml").read_text("utf-8"))
    tested = {t.lower() for groups in world.phrasings.values() for t in groups["test"]}
    phrasings: dict[str, list[str]] = {}
    for relation, words in parts["relations"].items():
        templates = [
            frame.format(**{kind.removesuffix("s"): word})
            for kind, frames in parts["frames"].items()
            for word in words.get(kind, [])
            for frame in frames
        ]
        phrasings[relation] = [t for t in templates if t.lower() not in tested]
    return phrasings


def encoder_tokenizer(tokenizer_dir: Path, out: Path) -> PreTrainedTokenizerFast:
    """The LM's tokenizer with a <cls> token in front, whose output is the sentence embedding."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.add_special_tokens(["<cls>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A", special_tokens=[("<cls>", tokenizer.token_to_id("<cls>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", cls_token="<cls>", model_max_length=128
    )
    fast.save_pretrained(out)
    return fast


@torch.no_grad()
def retrieval(world: World, encoder_dir: Path) -> dict[str, float]:
    """Top-1 retrieval of the EDIT prompts of 2,000 facts by other phrasings of them (%)."""
    model = BertModel.from_pretrained(encoder_dir, add_pooling_layer=False, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder_dir)

    def encode(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        states = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.normalize(states.last_hidden_state[:, 0], dim=-1)

    facts = random.Random(0).sample(world.in_split("edit"), 2000)
    keys = encode([world.prompts(fact, "edit")[0] for fact in facts])
    phrased = {
        "other EDIT": lambda fact: world.prompts(fact, "edit")[1],
        "calibration PSEUDO": lambda fact: world.calibration_prompts(fact)[0],
        "TEST": lambda fact: world.prompts(fact, "test")[0],
    }

    def right(cosine: torch.Tensor) -> torch.Tensor:
        return (cosine.argmax(1) == torch.arange(len(cosine))).float().mean()

    return {
        name: round(100 * float(right(encode([ask(fact) for fact in facts]) @ keys.T)), 2)
        for name, ask in phrased.items()
    }
