"""Processes which change edits and save them are killed at any instant: no edit is lost.

    python tests/campaigns/live_kills.py [--kills 200] [--seed 0]

prints one line per failure and `live_kills tried=... failed=...`; exits with 1 if anything failed.
A process adds, replaces, removes, takes back, consolidates and compacts, and after each change
saves to its folder, on a disk slower than ours, and reports it. kill -9 comes at a random instant.
The folder then holds the version reported last or a later one, whole: ids, neurons and anchors.
The next process goes on with what the folder holds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.edits import live
from meg_editor.edits.consolidation import Consolidation
from meg_editor.edits.edition import Edition
from meg_editor.generators import GENERATORS
from meg_editor.generators.grown import GrownGenerator
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.listing import saved_edits
from meg_editor.requests.request import EditRequest
from tests.campaigns.forked import Count, prepare, share, start
from tests.synthetic_neurons import Collector, neuron_of

WAIT = 60.0  # seconds for a process to load the folder
DELAY = 0.3  # seconds until a kill, at most
SLOW = 0.002  # seconds which the disk takes longer
MANY = 30  # edits from which on more are removed than added
STEPS = {"add": 40, "remove": 20, "replace": 10, "undo": 15, "consolidate": 7, "compact": 8}


@dataclass
class Kills:
    """Kills of processes which save to one folder after another.

    Attributes:
        model: what a first version is saved of; its base is shared by all processes.
        top: for the folders.
        each: kills of those who save to one folder.
    """

    model: MeGModel
    top: Path
    each: int = 10
    count: Count = field(default_factory=lambda: Count("live_kills"))
    amid: int = 0  # kills between a change and the report that it is saved

    def run(self, number: int, seed: int = 0) -> Count:
        """`number` kills."""
        rng = random.Random(seed)
        folder = self.top / "edits"
        for kill in range(number):
            if kill % self.each == 0:
                folder = self.top / f"edits {kill}"
                self.model.save_pretrained(folder)
            log = self.top / "log"
            log.write_bytes(b"")
            pid = start(partial(self.work, folder, rng.random()), log)
            problem = _killed(pid, log, rng.uniform(0, DELAY))
            lines = log.read_text("utf-8").split("\n")[:-1]  # the last one may not be whole
            self.amid += bool(lines) and lines[-1].startswith("next")
            self.count.note(f"kill {kill}", problem or self.problem(folder, lines))
        return self.count

    def work(self, folder: Path, seed: float) -> None:
        """Change and save, without end; print the ids after each change and each save."""
        live.collect, live.consolidated = Collector(), half_generated
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, partial(_slowly, getattr(os, name)))
        rng = random.Random(seed)
        model = MeGModel.from_pretrained(folder, base=self.model.base)
        _say("done", model)
        while True:
            step = rng.choices(list(STEPS), list(STEPS.values()))[0]
            change(model, step, rng)
            _say("next", model)
            if rng.random() < 0.8:  # else several changes in one save, each a version
                model.save_pretrained(folder)
                _say("done", model)

    def problem(self, folder: Path, lines: list[str]) -> str:
        """What is wrong with what a killed process left; empty if nothing."""
        reported = {frozenset(line.split()[1:]) for line in lines if line.startswith("done")}
        if not reported:
            return "nothing was reported"
        place = max(n for n, line in enumerate(lines) if line.startswith("done"))
        allowed = [frozenset(line.split()[1:]) for line in lines[place:]]
        found = saved_edits(folder)
        ids = frozenset(edit.id for edit in found)
        if ids not in allowed:
            what = "an earlier version" if ids in reported else "no version"
            return f"{what}: {len(ids)} edits, not {[len(each) for each in allowed]}"
        model = MeGModel.from_pretrained(folder, base=self.model.base)
        if model.edits != found or [e.state for e in model.edits] != [e.state for e in found]:
            return "the edits which are listed are not those which are loaded"
        if not found:
            return ""
        rows = model.edition.rows(range(len(found)))
        for row, edit in enumerate(found):
            neuron = neuron_of(edit, model.spec.size).half()
            if edit.stored and edit.by != "fit" and not torch.equal(rows.neurons[row], neuron):
                return f"{edit} has another neuron"
        anchors = model.encoder.encode([edit.prompt for edit in found])
        return "" if torch.allclose(anchors, rows.anchors, atol=1e-5) else "other anchors"


def change(model: MeGModel, step: str, rng: random.Random) -> None:
    """One step of a process."""
    edits = model.edits
    if step == "add" and len(edits) < MANY:
        numbers = [rng.randrange(10**6) for _ in range(rng.randint(1, 3))]
        facts = [EditRequest(f"The capital of place {n} is", "Lima") for n in numbers]
        model.add(facts, on_conflict="keep")
    elif step in ("add", "remove") and edits:
        count = rng.randint(1, min(3, len(edits)))
        model.remove([edit.id for edit in rng.sample(edits, count)])
    elif step == "replace" and edits:
        edit = rng.choice(edits)
        target = f"town {rng.randrange(10**6)}"
        model.replace([EditRequest(edit.prompt, target, edit.subject)])
    elif step == "undo" and model._history.undoable:
        model.undo()
    elif step == "consolidate" and edits:
        model.consolidate()
    elif step == "compact":
        model.compact()


def half_generated(
    edition: Edition, hparams: MeGHyperParams, size: int, check: Any
) -> tuple[Edition, Consolidation]:
    """In place of `consolidated`: every other edit by a generator which was trained on nothing."""
    count = len(edition.edits)
    generator = GENERATORS["dit"].build(hparams, edition.index.anchors.shape[1], size, count)
    kept = [row for row, edit in enumerate(edition.edits) if edit.stored and row % 2]
    slot = torch.full((count,), -1)
    slot[kept] = torch.arange(len(kept))
    neurons = edition.neurons(kept) if kept else torch.zeros(0, size)
    grown = GrownGenerator(generator, neurons, slot)
    return edition.generated_by(grown), Consolidation(count, count - len(kept), 0, 0, 0.0)


def _slowly(operation: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    time.sleep(SLOW)
    try:
        return operation(*arguments, **more)
    finally:
        time.sleep(SLOW)


def _say(what: str, model: MeGModel) -> None:
    print(what, *(edit.id for edit in model.edits), flush=True)


def _killed(pid: int, log: Path, delay: float) -> str:
    """Kill a process some time after its first report; the problem if it ended before."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and b"\n" not in log.read_bytes():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return f"it ended: {log.read_text('utf-8')[-400:]}"
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if status == -signal.SIGKILL else f"it ended: {log.read_text('utf-8')[-400:]}"


def main() -> int:
    """Run the kills; the exit status."""
    from meg_editor import fit, load_model
    from meg_editor.data.world.facts import load_world
    from meg_editor.data.world.requests import edit_cases

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare("fitting.pipeline", "model.saved.loading", "model.saved.saving")
    hparams = MeGHyperParams.preset("default", device="cpu").changed(
        gate="similarity",
        gate_threshold=0.8,
        collection_steps=10,
        generator="bank",
        generator_width=8,
        generator_depth=1,
        generator_patch_size=64,
    )
    cases = edit_cases(load_world(), 4, options.seed)
    model, _ = fit(*load_model(hparams), [case.request for case in cases], hparams)
    share()
    with tempfile.TemporaryDirectory(prefix="live-kills-") as top:
        kills = Kills(model, Path(top).resolve())
        count = kills.run(options.kills, options.seed)
        return count.summary(f"{kills.amid} between a change and its report")


if __name__ == "__main__":
    sys.exit(main())
