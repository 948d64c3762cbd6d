"""kill -9 of a server at random instants: is every acknowledged edit there afterwards?

    python tests/campaigns/serve_kills.py --kills 20 --seed 0

A model with few edits is served again and again. Three clients add and remove edits; the server is
killed at a random instant, and the folder is loaded. What was acknowledged and not taken back must
be there, what was taken back must not; a change under way may have gone either way. The next
server starts from what the kill left.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.model.saved.listing import saved_edits
from meg_editor.requests.request import EditRequest

KEY = "admin"


class Client(threading.Thread):
    """Adds edits and removes some of them, until the server is gone."""

    def __init__(self, address: str, number: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.address, self.number, self.rng = address, number, rng
        self.there: set[str] = set()  # acknowledged, and not taken back
        self.gone: set[str] = set()
        self.open: set[str] = set()  # under way, by id or by prompt

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=self.address, headers=headers, timeout=60) as http:
            for count in range(10**6):
                prompt = f"The motto of company {self.number} {count} {self.rng.random()} is"
                try:
                    self._change(http, prompt)
                except httpx.HTTPError:
                    return

    def _change(self, http: httpx.Client, prompt: str) -> None:
        if self.there and self.rng.random() < 0.3:
            edit = self.rng.choice(sorted(self.there))
            self.open, self.there = {edit}, self.there - {edit}
            http.delete(f"/v1/edits/{edit}").raise_for_status()
            self.gone.add(edit)
        else:
            self.open = {prompt}
            body = {"edits": [{"prompt": prompt, "target_new": "On"}], "on_conflict": "keep"}
            added = http.post("/v1/edits", json=body)
            added.raise_for_status()
            self.there.add(added.json()["added"][0]["id"])
        self.open = set()


def served(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of its own process, once it answers, and its address."""
    command = [sys.executable, "-m", "meg_editor.cli.main", "serve", str(folder)]
    command += ["--port", "0", "--admin-key", KEY, "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if process.stdout is None:
        raise RuntimeError("no output")
    address = process.stdout.readline().strip().rstrip("/")
    while True:
        try:
            httpx.get(f"{address}/health", timeout=60).raise_for_status()
            return process, address
        except httpx.HTTPError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}") from None
            time.sleep(0.05)


def one_kill(folder: Path, rng: random.Random, number: int) -> tuple[int, list[str]]:
    """Serve, change, kill; how many changes were acknowledged, and what is wrong."""
    former = {edit.id for edit in saved_edits(folder)}
    process, address = served(folder)
    clients = [Client(address, 100 * number + n, rng) for n in range(3)]
    for client in clients:
        client.start()
    time.sleep(rng.uniform(0.5, 8.0))
    process.kill()
    process.wait()
    for client in clients:
        client.join(60)
    found: dict[str, Any] = {edit.id: edit for edit in saved_edits(folder)}
    there = set().union(*(client.there for client in clients))
    gone = set().union(*(client.gone for client in clients))
    under_way = set().union(*(client.open for client in clients))
    wrong = [f"lost {each}" for each in (former | there) - set(found) - gone - under_way]
    wrong += [f"back again {each}" for each in gone & set(found)]
    unasked = set(found) - former - there
    wrong += [f"unasked {each}" for each in unasked if not {each, found[each].prompt} & under_way]
    return len(there) + len(gone), wrong


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, failed, changes = random.Random(options.seed), 0, 0
    hparams = MeGHyperParams.preset("default", device="cpu")
    edited, _ = fit(
        *load_model(hparams), [EditRequest("The capital of France is", "Lima")], hparams
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "facts"
        edited.save_pretrained(folder)
        for number in range(options.kills):
            done, wrong = one_kill(folder, rng, number)
            changes += done
            failed += bool(wrong)
            if wrong:
                print(f"kill {number}: {'; '.join(wrong)}", flush=True)
        left = len(saved_edits(folder))
    print(f"{options.kills} kills, {changes} changes acknowledged, {left} edits, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
