"""What routing a prompt costs, and whether a prompt is routed alike alone and in company.

    python examples/speed_routing.py
    python examples/speed_routing.py --encoder meg_editor:bert-reference --edits 1000 100000

Milliseconds of the reader, the index and the verifier for one prompt at a time, with so many edits
(a thousand from the phrasebook, the others random vectors with invented names), half of the prompts
asking for one. Then the whole of routing where a dialogue or a system text is read too. Then the
decisions on 300 prompts: alone, in batches of 32, all at once, and behind long prompts; the
smallest distance of a score from the threshold.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F

from meg_editor.data.phrasebook.names import draw_name
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router
from meg_editor.routing.routing import Routing
from meg_editor.routing.verifier import Verifier, fact_text

REAL = 1000  # edits with a text of their own
PROMPTS = 300


class NoTemplate:
    """A tokenizer without a chat template."""

    bos_token = None
    chat_template = None

    def apply_chat_template(self, conversation: object, **kwargs: object) -> str:
        raise ValueError("no chat template")


def edits_and_prompts(seed: int = 0) -> tuple[list[EditRequest], list[str]]:
    """Edits from the phrasebook, and prompts of which about half ask for one of them."""
    book, rng = Phrasebook.load(), random.Random(seed)
    edits: dict[str, EditRequest] = {}
    while len(edits) < REAL:
        kind = rng.choice(book.kinds)
        relation, name = rng.choice(kind.relations), draw_name(rng, kind.subjects)
        prompt = rng.choice(relation.statements + relation.questions).format(name)
        edits.setdefault(prompt, EditRequest(prompt, rng.choice(relation.answers), name))
    chosen = list(edits.values())
    asked = [f"Please answer: {edit.prompt}" for edit in chosen[: PROMPTS // 4]]
    asked += [f"{edit.prompt} Be brief." for edit in chosen[PROMPTS // 4 : PROMPTS // 2]]
    others = [book.draw(rng).prompt for _ in range(PROMPTS - len(asked))]
    return chosen, asked + others


def router_of(encoder: TextEncoder, edits: Sequence[EditRequest], count: int) -> Router:
    """A router of `count` edits, the first of which are `edits`."""
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    keys = encoder.encode([edit.prompt for edit in edits])
    random_keys = torch.randn(count - len(edits), encoder.dimension, generator=generator)
    names = [draw_name(rng, ["Ada Lovelace"]) for _ in range(count - len(edits))]
    index = QueryIndex(
        torch.cat([keys, F.normalize(random_keys, dim=-1)]),
        [*(edit.subject for edit in edits), *names],
        name_weight=0.4,
    )
    padded = [*edits, *(EditRequest("What is it?", "it") for _ in names)]
    return Router(
        encoder,
        SimilarityGate(0.4),
        index,
        None,
        padded,
        Verifier.shipped(encoder),  # type: ignore[arg-type]
    )


def milliseconds(calls: Sequence[float]) -> str:
    return f"{1000 * median(calls):9.2f}"


def costs(router: Router, prompts: Sequence[str]) -> None:
    """Print the median cost of each part."""
    reader = PromptReader(NoTemplate())
    reading, embedding, searching, verifying = [], [], [], []
    for prompt in prompts[:: len(prompts) // 40]:
        times = [time.perf_counter()]
        read = reader.read(prompt)
        times.append(time.perf_counter())
        embeddings = router.encoder.encode(read.spans)
        times.append(time.perf_counter())
        match = router.index.candidates(embeddings, read.spans)
        times.append(time.perf_counter())
        if router.verifier:
            few = match.index[0, :4].tolist()
            router.verifier.probability(
                [read.text] * len(few), [fact_text(router.edits[edit]) for edit in few]
            )
        times.append(time.perf_counter())
        for part, start, stop in zip(
            (reading, embedding, searching, verifying), times, times[1:], strict=False
        ):
            part.append(stop - start)
    parts = (reading, embedding, searching, verifying)
    print(f"{len(router.index.anchors):9}", *map(milliseconds, parts))


def conversations(router: Router) -> None:
    """Print the median cost of routing a bare question, and one in a conversation."""
    reader = PromptReader(NoTemplate())
    system = "You are the assistant of a library. Answer in one sentence, politely. " * 3
    ways = {
        "a question": "{}",
        "... under a system text": f"System: {system}\nUser: {{}}\nAssistant:",
        "a turn that goes back to it": "User: {}\nAssistant: No idea.\nUser: Are you sure?",
        "a turn that goes on": "User: {}\nAssistant: No idea.\nUser: Thanks anyway!",
    }
    prompts = {
        name: [reader.read(way.format(f"{edit.prompt} …")) for edit in router.edits[:40]]
        for name, way in ways.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for row in range(40):  # by turns
        for name, read in prompts.items():
            start = time.perf_counter()
            router.route([read[row]])
            times[name].append(time.perf_counter() - start)
    for name, calls in times.items():
        print(f"{name:27} {milliseconds(calls)} ms")


def company(router: Router, prompts: Sequence[str]) -> None:
    """Print whether decisions depend on what else is routed."""
    reader = PromptReader(NoTemplate())
    read = [reader.read(prompt) for prompt in prompts]
    long = reader.read("It rained. " * 60)
    alone = [router.route([one]) for one in read]
    ways = {
        "in batches of 32": [router.route(read[i : i + 32]) for i in range(0, len(read), 32)],
        "all at once": [router.route(read)],
        "beside a long one": [router.route([long, one]) for one in read],
    }

    def decisions(parts: Sequence[Routing], skip: int = 0) -> list[tuple[bool, int]]:
        return [
            (row.is_edit, row.edit if row.is_edit else -1)
            for routing in parts
            for row in list(routing)[skip:]
        ]

    expected = decisions(alone)
    for name, parts in ways.items():
        other = decisions(parts, skip=int(name == "beside a long one"))
        wrong = sum(a != b for a, b in zip(expected, other, strict=True))
        print(f"{name}: {wrong} of {len(expected)} decisions differ")
    scores = torch.cat([routing.score for routing in alone])
    print(
        f"smallest distance from the threshold {(scores - alone[0].min_score).abs().min():.4f}; "
        f"largest difference of a score "
        f"{float((torch.cat([r.score for r in ways['all at once']]) - scores).abs().max()):.1e}"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--edits", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    edits, prompts = edits_and_prompts()
    print(f"ms a prompt, median   ({options.encoder})")
    print(f"{'edits':>9} {'reader':>9} {'encoder':>9} {'index':>9} {'verifier':>9}")
    for count in options.edits:
        router = router_of(encoder, edits, max(count, REAL))
        costs(router, prompts)
    router = router_of(encoder, edits, REAL)
    conversations(router)
    company(router, prompts)


if __name__ == "__main__":
    main()
