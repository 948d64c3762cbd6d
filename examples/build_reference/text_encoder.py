"""The text encoder which tells apart who and what a sentence asks about."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from schedule import cosine
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from meg_editor.data.phrasebook.kinds import Kind, Relation
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.data.world.facts import World
from meg_editor.runtime.precision import bfloat16

_VOCABULARY = 8192
_LENGTH = 192
# Who has which relations; what else there is has one relation alone.
_KINDS = {
    "country": ("capital", "language", "currency", "continent"),
    "element": ("symbol", "atomic_number"),
    "person": ("birthplace", "profession", "employer", "instrument", "hobby"),
    "company": ("headquarters", "product", "founder", "founding_year"),
    "town": ("town_country", "river", "speciality"),
}
Name = list[list[str]]  # words, each made of parts


def train_encoder(world: World, out: Path, args: argparse.Namespace) -> None:
    """A BERT trained to tell apart who and what a sentence asks about, whatever the phrasing.

    Contrastive pairs: two phrasings of one relation around one subject (EDIT, those PSEUDO ones
    that do not calibrate thresholds, the many of paraphrases.yaml, and the phrasebook), against the
    same subject in other relations and a similar subject in the same one. Subjects are random
    words, names put together from word pieces and the PSEUDO split: no fact which may be edited is
    seen. Case and width are the tokenizer's to remove.
    """
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    book = Phrasebook.load(world_kinds(world))
    tokenizer = encoder_tokenizer(book, out)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=_LENGTH,
        type_vocab_size=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertModel(config, add_pooling_layer=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    names = Names(tokenizer, sorted({fact.subject for fact in world.in_split("pseudo")}), rng)
    # Half of the pairs are of the world's relations: it is these that the demo asks about.
    groups = [[kind for kind in book.kinds if of_world(kind)], list(book.kinds)]

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
        for _ in range(24):
            name = names.draw()
            relations = _confusable(rng, groups[rng.random() < 0.5])
            pairs = [(name, relation) for relation in relations]
            pairs.append((names.similar(name), relations[0]))
            for who, relation in pairs:
                first, second = (
                    rng.choice(rng.choice((relation.statements, relation.questions)))
                    for _ in range(2)
                )
                anchors.append(_said(rng, first, who))
                positives.append(_said(rng, second, who))
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


class Names:
    """Random names: of the PSEUDO split, of words, and put together from word pieces."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, known: list[str], rng: random.Random
    ) -> None:
        vocabulary = sorted(tokenizer.get_vocab())
        self.words = [w[1:] for w in vocabulary if w[0] == "Ġ" and len(w) > 3 and w[1:].isalpha()]
        self.pieces = [w for w in vocabulary if w.isascii() and w.isalpha() and 2 <= len(w) <= 6]
        self.known, self.rng = known, rng

    def draw(self) -> Name:
        rng, draw = self.rng, self.rng.random()
        if draw < 0.2:
            return [[word] for word in rng.choice(self.known).split()]
        if draw < 0.6:
            return [[rng.choice(self.words)] for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        return [
            [rng.choice(self.pieces), *rng.choices(self.pieces, k=rng.choice((1, 2)))]
            for _ in range(rng.choice((1, 1, 2)))
        ]

    def similar(self, name: Name) -> Name:
        """Another name which differs in one part of one word."""
        name = [list(word) for word in name]
        word = self.rng.choice(name)
        place = self.rng.randrange(len(word))
        word[place] = self.rng.choice(self.words if len(word) == 1 else self.pieces)
        return name


def of_world(kind: Kind) -> bool:
    """Whether it is one of `world_kinds`."""
    return kind.name.startswith("world ")


def world_kinds(world: World) -> list[Kind]:
    """Kinds of subjects of the reference world, around names of the PSEUDO split.

    In tuning phrasings and those of paraphrases.yaml; none is a TEST phrasing.
    """
    composed = paraphrases(world)
    single = {relation: (relation,) for relation in world.phrasings}
    for relations in _KINDS.values():
        for relation in relations:
            single.pop(relation, None)
    kinds = []
    for name, relations in {**_KINDS, **single}.items():
        subjects = sorted(
            {fact.subject for r in relations for fact in world.by_relation.get(r, ())}
            & {fact.subject for fact in world.in_split("pseudo", "common")}
        )
        known = [relation for relation in relations if composed.get(relation)]
        if not known or len(subjects) < 2:
            continue
        he, his = ("he", "his") if name == "person" else ("it", "its")
        kinds.append(
            Kind(
                f"world {name}",
                (he, his),
                tuple(subjects[:400]),
                tuple(_relation(world, relation, composed[relation]) for relation in known),
            )
        )
    return kinds


def _relation(world: World, name: str, composed: list[str]) -> Relation:
    phrasings = world.tuning_phrasings(name) * 3 + composed  # the world's own more often
    ends = {True: [], False: []}
    for text in phrasings:
        ends[text.rstrip().endswith("?")].append(text)
    answers = random.Random(name).sample(world.answers[name], min(40, len(world.answers[name])))
    return Relation(name, tuple(ends[False]), tuple(ends[True] or ends[False]), tuple(answers))


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


def encoder_tokenizer(book: Phrasebook, out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the phrasebook, without case and width, a <cls> token in front.

    The output of that token is the sentence embedding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<pad>", "<cls>", "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.replace("{}", " ") for text in book.texts], trainer)
    special = [(name, tokenizer.token_to_id(name)) for name in ("<cls>", "<sep>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A", pair="<cls> $A <sep> $B:1", special_tokens=special
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<cls>",
        sep_token="<sep>",
        model_max_length=_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
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
    phrased: dict[str, Callable[..., str]] = {
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


def _confusable(rng: random.Random, kinds: list[Kind]) -> list[Relation]:
    """Three relations, of one kind where it has as many."""
    kind = rng.choice(kinds)
    relations = list(kind.relations)
    while len(relations) < 3:
        relations.append(rng.choice(rng.choice(kinds).relations))
        relations = list({relation.name: relation for relation in relations}.values())
    return rng.sample(relations, 3)


def _said(rng: random.Random, template: str, name: Name) -> str:
    """A sentence, now and then without some of its words: tests are phrased differently."""
    remaining = [w for w in template.split() if "{}" in w or rng.random() > 0.08]
    return " ".join(remaining).format(" ".join("".join(word) for word in name))
