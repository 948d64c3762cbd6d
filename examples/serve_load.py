"""Many clients at once: does each get what it would get alone, and at what speed?

    python examples/serve_load.py
    python examples/serve_load.py --model smollm2 --edits 16 --requests 200

Edits facts, starts `meg-editor serve` on the result and `transformers serve` on the unedited model
(continuous batching, the same cache), both on this machine, and has the same clients ask both. Of
the requests a third asks for edits, a third for neighbours, a third by the base model's name; then
none asks for an edit, then all do. Each answer is compared with that of the model alone, in this
process. `--changes N` adds and removes edits meanwhile: is each in effect at once?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

import httpx
import torch

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.world.facts import load_world
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest

ADMIN = "admin"
KINDS = ("edited", "neighbour", "base")


def prepared(name: str, count: int, folder: Path) -> tuple[MeGModel, list[str], list[str]]:
    """An edited model, saved; prompts which ask for its edits, and prompts which do not."""
    world, rng = load_world(), random.Random(0)
    facts = rng.sample(world.in_split("edit"), 4 * count)
    chosen, others = facts[:count], facts[count:]
    edits = [
        EditRequest(
            world.prompts(fact, "edit")[0],
            rng.choice([a for a in world.answers[fact.relation] if a != fact.answer]),
            fact.subject,
        )
        for fact in chosen
    ]
    hparams = MeGHyperParams.preset("default", device="cpu")
    if name != "reference":
        hparams = MeGHyperParams(model_name=name, device="cpu")
    model, tokenizer = load_model(hparams)
    edited, _ = fit(model, tokenizer, edits, hparams)
    edited.save_pretrained(folder / "edited")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    asked = [prompt for fact in chosen for prompt in world.prompts(fact, "edit")]
    return edited, asked, [world.prompts(fact, "edit")[0] for fact in others]


@contextmanager
def serving(command: Sequence[str], port: int, path: str) -> Iterator[str]:
    """A server of its own process, until it answers; gives its address."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{address}{path}", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
            if process.poll() is not None:
                raise RuntimeError(f"{command[:4]} ended with status {process.returncode}")
        yield address
    finally:
        process.terminate()
        process.wait(60)


async def load(
    address: str,
    requests: Sequence[tuple[str, str]],
    clients: int,
    tokens: int,
) -> tuple[list[str | None], list[float], float]:
    """Answers to (model, prompt), None for a lost one; seconds of each, and of all."""
    answers: list[str | None] = [None] * len(requests)
    seconds: list[float] = []
    todo = iter(range(len(requests)))
    host, port = address.removeprefix("http://").split(":")

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for row in todo:
            model, prompt = requests[row]
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            start = time.perf_counter()
            status, found = await post(reader, writer, json.dumps(body).encode())
            seconds.append(time.perf_counter() - start)
            if status == 200:
                answers[row] = json.loads(found)["choices"][0]["text"]
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, seconds, time.perf_counter() - start


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, bytes]:
    """Status and body of one request; a client's library would take as long as the server."""
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.partition("content-length:")[2].partition("\r\n")[0])
    return int(answer.split()[1]), await reader.readexactly(length)


async def changes(address: str, count: int) -> tuple[int, int, list[float]]:
    """Adds and removes an edit, again and again; how many were in effect, of how many."""
    right = done = 0
    seconds = []
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(timeout=600, headers=headers, base_url=address) as http:

        async def answer(prompt: str) -> str:
            body = {"prompt": prompt, "max_tokens": 8, "temperature": 0}
            return (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]

        for number in range(count):
            prompt = f"The motto of company number {number} is"
            before = await answer(prompt)
            edit = {"prompt": prompt, "target_new": "Onward", "subject": f"company number {number}"}
            start = time.perf_counter()
            added = await http.post("/v1/edits", json=edit)
            seconds.append(time.perf_counter() - start)
            now = await answer(prompt)
            gone = await http.delete(f"/v1/edits/{added.json()['added'][0]['id']}")
            after = await answer(prompt)
            fine = added.status_code == 201 and gone.status_code == 200
            right += fine and now.strip().startswith("Onward") and after == before
            done += 1
    return right, done, seconds


def alone(model: MeGModel, requests: Sequence[tuple[str, str]], tokens: int) -> list[str]:
    """The answer to each request by itself, in this process."""
    known: dict[tuple[str, str], str] = {}
    tokenizer = model.tokenizer
    for name, prompt in requests:
        if (name, prompt) not in known:
            ids = torch.tensor(prompt_tokens(tokenizer, [prompt]))
            lm = model.base if name.endswith(":base") else model
            out = lm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
            text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            known[name, prompt] = text
    return [known[request] for request in requests]


def report(
    name: str, wanted: Sequence[str] | None, found: tuple[list[str | None], list[float], float]
) -> float:
    """Print one line; requests a second."""
    answers, seconds, total = found
    lost = sum(answer is None for answer in answers)
    wrong = (
        ""
        if wanted is None
        else ", wrong "
        + str(sum(a is not None and a != w for a, w in zip(answers, wanted, strict=True)))
    )
    cuts = quantiles(seconds, n=20)
    rate = len(answers) / total
    print(
        f"{name}: {rate:.1f} requests/s, p50 {1000 * cuts[9]:.0f} ms, p95 {1000 * cuts[18]:.0f} "
        f"ms, lost {lost}{wrong}",
        flush=True,
    )
    return rate


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference", help="as in `meg-editor edit`")
    parser.add_argument("--edits", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--changes", type=int, default=0, help="edits added and removed meanwhile")
    options = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, asked, others = prepared(options.model, options.edits, folder)
        drawn = {
            "mixed": [
                rng.choice(
                    (
                        ("edited", rng.choice(asked)),
                        ("edited", rng.choice(others)),
                        ("edited:base", rng.choice(asked)),
                    )
                )
                for _ in range(options.requests)
            ],
            "none edited": [("edited", rng.choice(others)) for _ in range(options.requests)],
            "all edited": [("edited", rng.choice(asked)) for _ in range(options.requests)],
        }
        ours = [sys.executable, "-m", "meg_editor.cli.main", "serve", str(folder / "edited"),
                "--port", "8765", "--admin-key", ADMIN, "--device", "cpu"]  # fmt: skip
        theirs = ["transformers", "serve", str(folder / "base"), "--continuous-batching",
                  "--device", "cpu", "--dtype", "float32", "--port", "8766",
                  "--cb-block-size", "32", "--cb-num-blocks", "512",
                  "--cb-max-batch-tokens", "512"]  # fmt: skip
        wanted = {name: alone(model, each, options.tokens) for name, each in drawn.items()}
        rates = {}
        # One after the other on the same cores, in turns: the machine may be slower for a while.
        with (
            serving(ours, 8765, "/health") as our_address,
            serving(theirs, 8766, "/health") as their_address,
        ):
            for address, name in ((our_address, "edited"), (their_address, str(folder / "base"))):
                warm = [(name, prompt) for _, prompt in drawn["mixed"][:64]]
                asyncio.run(load(address, warm, options.clients, options.tokens))
            for name, requests in drawn.items():
                base = [(str(folder / "base"), prompt) for _, prompt in requests]
                found = asyncio.run(load(our_address, requests, options.clients, options.tokens))
                rates[name] = report(f"meg-editor serve, {name}", wanted[name], found)
                found = asyncio.run(load(their_address, base, options.clients, options.tokens))
                other = report(f"transformers serve, {name}", None, found)
                print(f"  ratio {rates[name] / other:.2f}", flush=True)
            if options.changes:
                asyncio.run(changing(our_address, drawn["mixed"], wanted["mixed"], options))


async def changing(
    address: str,
    requests: Sequence[tuple[str, str]],
    wanted: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Edits are added and removed while clients ask."""
    changed = asyncio.create_task(changes(address, options.changes))
    asked, expected, answers, seconds, total = [], [], [], [], 0.0
    while not changed.done():
        found, each, lasted = await load(address, requests, options.clients, options.tokens)
        asked += requests
        expected += wanted
        answers += found
        seconds += each
        total += lasted
    report(f"while edits change, {len(asked)} requests", expected, (answers, seconds, total))
    right, done, times = await changed
    print(
        f"{right} of {done} edits in effect at once and gone at once; "
        f"{sum(times) / len(times):.2f} s to add one",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
