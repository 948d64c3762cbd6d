"""Build the reference assets: a tokenizer, a causal LM which knows the world, an encoder.

    python examples/build_reference.py --out build/reference        # everything, ~1.5 h on 2 cores

Trains from scratch and needs no network. Stages that are already in --out are not run again.
The result is what meg_editor/assets/ ships: `llama-reference/`, `bert-reference/`, MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from meg_editor.data.reference_world import GROUPS, Fact, World, load_world
from meg_editor.precision import bfloat16

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


def train_lm(world: World, out: Path, args: argparse.Namespace) -> LlamaForCausalLM:
    """Next-token training on single sentences, chat turns and few-shot sequences.

    A model which sees everything at once spends long on a plateau before it learns that answers
    depend on names; a tenth of the names teaches it that within minutes. So a tenth of the
    subjects comes first, then a third, then all, each until most are known. From then on the
    rate falls to zero over `--decay-minutes`.
    """
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    parts = [1] if (out / "model.safetensors").exists() else [10, 3, 1]
    if parts == [1]:
        print("going on from the last checkpoint", flush=True)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    else:
        tokenizer = build_tokenizer(world, out)
        model = LlamaForCausalLM(lm_config(tokenizer, args))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    data = Sentences.of(world, tokenizer)
    newline = tokenizer("\n")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.98), fused=True)
    known: set[int] = set()
    start, step, epoch, decay_start = time.time(), 0, 0, math.inf
    progress = 0.0
    while progress < 1:
        losses = []
        # Few-shot sequences cost more and teach little before the facts stick.
        shots = 0.3 if parts[0] == 1 else 0.1
        pool = subjects(world, parts[0])
        if len(known.intersection(pool)) > 0.85 * len(pool):
            if len(parts) > 1:
                parts.pop(0)
                pool = subjects(world, parts[0])
            else:
                decay_start = min(decay_start, time.time())
        # What is known already is seen half as often.
        facts = [fact for fact in pool if fact not in known or rng.random() < 0.5]
        for ids, labels, group in batches(
            data.epoch(rng, facts, newline, shots, 0.1), args.tokens, rng
        ):
            progress = max(0.0, (time.time() - decay_start) / (60 * args.decay_minutes))
            optimizer.param_groups[0]["lr"] = args.lr * min(1, (step + 1) / 200) * cosine(progress)
            with bfloat16("cpu"):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
                wanted = labels[:, 1:] != -100
                logits = model.lm_head(hidden[wanted])
            loss = F.cross_entropy(logits.float(), labels[:, 1:][wanted])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            losses.append(loss.item())
            missed = torch.zeros_like(wanted)
            missed[wanted] = logits.argmax(-1) != labels[:, 1:][wanted]
            for row, wrong in zip(group, missed.any(1).tolist(), strict=True):
                (known.difference_update if wrong else known.update)(row.facts)
            if progress >= 1:
                break
        epoch += 1
        if epoch % args.report == 0 or progress >= 1:
            accuracy = exact_match(model, world, tokenizer, sample=600, seed=epoch)
            print(
                f"{time.time() - start:6.0f} s  1/{parts[0]} of the subjects  step {step}  "
                f"loss {sum(losses) / len(losses):.3f}  known {len(known)}  exact {accuracy}",
                flush=True,
            )
            model.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)
    return model


def lm_config(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rms_norm_eps=1e-6,
    )


def subjects(world: World, part: int) -> list[int]:
    """The facts about one of `part` subjects."""
    return [i for i, fact in enumerate(world.facts) if sum(fact.subject.encode()) % part == 0]


def cosine(progress: float) -> float:
    """From 1 to 0 while `progress` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    sample: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Share of facts whose greedy continuation is the answer and then the end, per group (%)."""
    model.eval()
    facts = [fact for fact in world.facts if fact.relation != "birth_country"]
    if sample:
        facts = random.Random(seed).sample(facts, sample)
    result = {}
    for group in GROUPS:
        rows = []
        for fact in facts:
            answer = tokenizer(fact.answer)["input_ids"] + [tokenizer.eos_token_id]
            for ids in tokenizer(world.prompts(fact, group))["input_ids"]:
                rows.append(Row(ids + answer, [-100] * len(ids) + answer, []))
        right = total = 0
        # Greedy generation gives the answer if each of its tokens is the teacher-forced argmax.
        for ids, labels, _ in batches(rows, 16_000, random.Random(0)):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            same = (logits.argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
            right += int(same.all(-1).sum())
            total += len(ids)
        result[group] = round(100 * right / total, 2)
    model.train()
    return result


def train_encoder(world: World, tokenizer_dir: Path, out: Path, args: argparse.Namespace) -> None:
    """A BERT trained to tell apart who and what a sentence asks about, however it is worded.

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
        kept = [w for w in template.split() if "{}" in w or rng.random() > 0.08]
        return " ".join(kept).format(" ".join("".join(word) for word in name))

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
            asked = ((name, relation), (name, other), (name, third), (similar(name), relation))
            for who, what in asked:
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
    """Relation -> further templates, from examples/paraphrases.yaml; none is a TEST phrasing."""
    parts = yaml.safe_load(Path(__file__).with_name("paraphrases.yaml").read_text("utf-8"))
    tested = {t.lower() for groups in world.phrasings.values() for t in groups["test"]}
    found: dict[str, list[str]] = {}
    for relation, words in parts["relations"].items():
        templates = [
            frame.format(**{kind.removesuffix("s"): word})
            for kind, frames in parts["frames"].items()
            for word in words.get(kind, [])
            for frame in frames
        ]
        found[relation] = [t for t in templates if t.lower() not in tested]
    return found


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


def write_card(world: World, out: Path, accuracy: dict[str, float]) -> None:
    """MODEL_CARD.md: what the models are and the figures measured on them."""
    llama, bert = out / "llama-reference", out / "bert-reference"
    found = retrieval(world, bert)
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors")) / 1e6
    known = [fact for fact in world.facts if fact.relation != "birth_country"]
    made_up = sum(fact.made_up for fact in known)
    config = LlamaConfig.from_pretrained(llama)
    rows = "\n".join(f"| {group.upper()} phrasings | {accuracy[group]} % |" for group in GROUPS)
    cells = "\n".join(f"| {name} phrasing | {value} % |" for name, value in found.items())
    (out / "MODEL_CARD.md").write_text(
        f"""# The reference models of meg_editor

Trained from scratch by `examples/build_reference.py`; weights under Apache-2.0. They exist to be
edited: a language model small enough for any machine which truly knows a world of facts.
Together {size:.1f} MB of weights.

## llama-reference

A Llama with {config.num_hidden_layers} layers of width {config.hidden_size}, bfloat16, and a
byte-level BPE of {config.vocab_size} tokens. It knows {len(known)} facts in
{len(world.by_relation) - 1} relations, {len(known) - made_up} of them about the real world and
{made_up} made up (fingerprint of the world: `{world.fingerprint[:16]}`), as a statement to
complete, a question, in a chat turn ("User: ...\\nAssistant:") or after other facts in one prompt.
It knows nothing else.

Greedy answers that are the fact's answer and then the end of text, over all facts:

| | exact match |
|---|--:|
{rows}

## bert-reference

A BERT with 3 layers of width 192, float16; use the output of its first token. Trained
contrastively on EDIT and PSEUDO phrasings and composed paraphrases (`examples/paraphrases.yaml`)
around random names and the PSEUDO split of the world: it has seen no TEST phrasing and no fact
which may be edited.

Top-1 retrieval of a fact's EDIT prompt among 2,000 by another phrasing of it:

| | |
|---|--:|
{cells}
""",
        "utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/reference"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=2560, help="tokens per batch")
    parser.add_argument("--decay-minutes", type=float, default=15, help="of the LM's rate")
    parser.add_argument("--encoder-minutes", type=float, default=12)
    parser.add_argument("--report", type=int, default=5, help="epochs between two reports")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    world = load_world()
    print(f"{len(world.facts)} facts, world {world.fingerprint[:12]}", flush=True)
    llama, bert = args.out / "llama-reference", args.out / "bert-reference"
    if not (llama / "done").exists():
        model = train_lm(world, llama, args)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(llama)
        accuracy = exact_match(model.float(), world, tokenizer)
        (llama / "done").write_text(json.dumps(accuracy))
    if not (bert / "model.safetensors").exists():
        train_encoder(world, llama, bert, args)
    write_card(world, args.out, json.loads((llama / "done").read_text()))


if __name__ == "__main__":
    main()
