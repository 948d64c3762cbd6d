"""Build the reference assets: a tokenizer, a causal LM which knows the world, an encoder.

    python examples/build_reference --out build/reference        # everything, ~1.5 h on 2 cores

Trains from scratch and needs no network. Stages that are already in --out are not run again.
The result is what meg_editor/lm/assets/ ships: `llama-reference/`, `bert-reference/` and
MODEL_CARD.md; and, by the digest of the encoder, what meg_editor/routing/verifiers/ ships.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from causal_lm import exact_match, train_lm
from model_card import write_card
from safetensors.torch import save_file
from text_encoder import train_encoder, world_kinds
from transformers import PreTrainedTokenizerFast

from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.data.world.facts import load_world
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.routing.encoder import TextEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/reference"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=2560, help="tokens per batch")
    parser.add_argument("--decay-minutes", type=float, default=15, help="of the LM's rate")
    parser.add_argument("--encoder-minutes", type=float, default=18)
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
        train_encoder(world, bert, args)
    verifier = args.out / "verifier.safetensors"
    if not verifier.exists():
        # It knows forms alone: to tell relations apart takes a model which has read more.
        adapter = train_verifier(
            TextEncoder.from_pretrained(bert),
            Phrasebook.load(world_kinds(world), other_facts=False),
            steps=2500,
            lr=4e-4,
            limits={"threshold": 0.1, "similarity": 0.82},
            seed=args.seed,
        )
        save_file(adapter, verifier)
    write_card(world, args.out, json.loads((llama / "done").read_text()))


if __name__ == "__main__":
    main()
