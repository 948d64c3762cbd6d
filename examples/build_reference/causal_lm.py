"""The causal LM which knows the world."""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from schedule import cosine
from sentences import Row, Sentences, batches, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from meg_editor.data.world.facts import GROUPS, World
from meg_editor.runtime.precision import bfloat16


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
                is_target = labels[:, 1:] != -100
                logits = model.lm_head(hidden[is_target])
            loss = F.cross_entropy(logits.float(), labels[:, 1:][is_target])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            losses.append(loss.item())
            missed = torch.zeros_like(is_target)
            missed[is_target] = logits.argmax(-1) != labels[:, 1:][is_target]
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
