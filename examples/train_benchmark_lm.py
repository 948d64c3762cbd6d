"""Train a small LM whose knowledge real editing benchmarks can change, without a model hub.

    python examples/train_benchmark_lm.py --counterfact counterfact.json \\
        --zsre zsre_mend_eval.json zsre_mend_train_10k.json --out benchmark-lm

It learns CounterFact's TRUE answers and ZsRE's WRONG ones (`alt`). So CounterFact edits are
counterfactual and ZsRE edits (to `answers[0]`) are corrections, as in the paper. An hour on two CPU
cores; the sizes of the defaults are those of the model our results were measured on.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.loaders.counterfact import load_counterfact
from meg_editor.data.loaders.zsre import load_zsre
from meg_editor.lm.tokens import Batch, encode_example, target_logits
from meg_editor.runtime.precision import bfloat16

Sentence = tuple[str, str]  # prompt, answer


def sentences(counterfact: Path | None, zsre: Sequence[Path]) -> list[Sentence]:
    """What the LM is to know: each prompt once, with the answer it is to give before any edit."""
    known: dict[str, str] = {}

    def learn(case: EvaluationCase, answer: str | None, probes: int) -> None:
        if answer:
            for prompt in (case.request.prompt, *case.paraphrases):
                known.setdefault(prompt, answer)
        for kind in case.locality.values():
            for probe in kind[:probes]:
                if probe.answers:
                    known.setdefault(probe.prompt, probe.answers[0])

    if counterfact:
        for case in load_counterfact(counterfact).cases:
            learn(case, case.truth, probes=6)
    for path in zsre:
        for case in load_zsre(path, target="alt").cases:
            learn(case, case.request.target_new, probes=1)
    return list(known.items())


def train_tokenizer(rows: Sequence[Sentence], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a word is the same token at the beginning of a text and within it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{prompt} {answer}" for prompt, answer in rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=256
    )


def new_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(lengths: Sequence[int], tokens: int, rng: random.Random) -> Iterator[list[int]]:
    """Rows of one epoch in random order, similar lengths together, about `tokens` per batch."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row] + rng.random() * 4)
    chunks: list[list[int]] = [[]]
    for row in order:
        if chunks[-1] and (len(chunks[-1]) + 1) * lengths[row] > tokens:
            chunks.append([])
        chunks[-1].append(row)
    rng.shuffle(chunks)
    yield from chunks


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sentence],
    epochs: int,
    rate: float,
    tokens: int,
    seed: int,
) -> None:
    """AdamW on the answers, under bfloat16 where the hardware knows it; a line per epoch."""
    examples = [encode_example(tokenizer, *row) for row in rows]
    examples = [example for example in examples if len(example) <= 256]
    lengths = [len(example) for example in examples]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * sum(1 for _ in batches(lengths, tokens, random.Random(0)))
    step, start = 0, time.time()
    model.train()
    for epoch in range(epochs):
        total = right = answers = 0.0
        for chunk in batches(lengths, tokens, rng):
            progress = step / steps
            optimizer.param_groups[0]["lr"] = rate * min(
                1.0, (step + 1) / 100, 0.02 + 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            )
            batch = Batch.of([examples[row] for row in chunk], model.device)
            with bfloat16(model.device):
                logits, targets, owner = target_logits(model, batch)
            loss = F.cross_entropy(logits.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            total += loss.item() * len(chunk)
            missed = torch.zeros(len(chunk)).index_add_(
                0, owner.cpu(), (logits.argmax(-1) != targets).float().cpu()
            )
            right += float((missed == 0).sum())
            answers += len(chunk)
        print(
            f"epoch {epoch + 1}/{epochs}  {time.time() - start:5.0f} s  "
            f"loss {total / answers:.3f}  answers known {100 * right / answers:.1f} %",
            flush=True,
        )
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--counterfact", type=Path, help="CounterFact in ROME's schema")
    parser.add_argument("--zsre", type=Path, nargs="*", default=[], help="ZsRE in MEND's schema")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="per batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.counterfact or args.zsre):
        parser.error("give --counterfact, --zsre or both")
    rows = sentences(args.counterfact, args.zsre)
    tokenizer = train_tokenizer(rows, args.vocabulary)
    torch.manual_seed(args.seed)
    model = new_model(tokenizer, args.layers, args.width)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(rows)} sentences, {size / 1e6:.1f} M parameters", flush=True)
    train(model, tokenizer, rows, args.epochs, args.lr, args.tokens, args.seed)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
