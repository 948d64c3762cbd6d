"""MODEL_CARD.md: what the models are and the figures measured on them."""

from __future__ import annotations

from pathlib import Path

from text_encoder import retrieval
from transformers import LlamaConfig

from meg_editor.data.world.facts import GROUPS, World


def write_card(world: World, out: Path, accuracy: dict[str, float]) -> None:
    """MODEL_CARD.md: what the models are and the figures measured on them."""
    llama, bert = out / "llama-reference", out / "bert-reference"
    accuracy = retrieval(world, bert)
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors")) / 1e6
    known = [fact for fact in world.facts if fact.relation != "birth_country"]
    made_up = sum(fact.made_up for fact in known)
    config = LlamaConfig.from_pretrained(llama)
    rows = "\n".join(f"| {group.upper()} phrasings | {accuracy[group]} % |" for group in GROUPS)
    cells = "\n".join(f"| {name} phrasing | {value} % |" for name, value in accuracy.items())
    (out / "MODEL_CARD.md").write_text(
        f"""# The reference models of meg_editor

Trained from scratch by `examples/build_reference`; weights under Apache-2.0. They exist to be
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

A BERT with 4 layers of width 256, float16, and a byte-level BPE of 8192 tokens without case and
width; use the output of its first token. Trained contrastively on EDIT and PSEUDO phrasings,
composed paraphrases (`examples/build_reference/paraphrases.yaml`) and the phrasebook
(`meg_editor/data/phrasebook/`), around random names and the PSEUDO split of the world: it has seen
no TEST phrasing and no fact which may be edited.

Top-1 retrieval of a fact's EDIT prompt among 2,000 by another phrasing of it:

| | |
|---|--:|
{cells}
""",
        "utf-8",
    )
