"""Saved folders are damaged, and their writers killed, at every point: nothing half is ever loaded.

    python tests/campaigns/folders.py [--damages 1500] [--every 1] [--seconds 20] [--seed 0]

prints one line per failure and `folders tried=... failed=...`; exits with 1 if anything failed.

1. Damages: a saved folder is altered (damage.py); it is refused with a documented exception or
   loads as it was saved, within 5 s of computing and 1 GiB. Where the checksum was made to agree
   with changed settings or JSON, what loads may differ.
2. Kills: the process ends before every n-th (`--every`) file operation of `meg-editor edit` and of
   `save_pretrained`. A whole version loads, the same command again gives equal files, and nothing
   is left beside them.
3. Saves: every load is one version, whole, while two processes save two versions in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from tests.campaigns.damage import DAMAGES, files_of, stamped_config, stamped_json
from tests.campaigns.forked import RAISED, Count, forked, prepare, share, start

SAME, REFUSED, OTHER = 0, 3, 4  # exit statuses of a load
KILLED = 9
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod")
SETTINGS = (
    "encoder_steps=0",
    "collection_steps=10",
    "collection_contexts=1",
    "generator=bank",
    "gate_threshold=0.8",
    "gate_state_weight=0.0",
)


@dataclass
class Folders:
    """Two saved models, the base model they were made for, and room for their copies."""

    top: Path
    base: Any
    tokenizer: Any
    digests: tuple[str, ...] = ()

    @classmethod
    def made_in(cls, top: Path, seed: int) -> Folders:
        """Fit and save two models to one/ and two/, with the facts in one.json and two.json."""
        from meg_editor import MeGHyperParams, load_model
        from meg_editor.data.world.facts import load_world
        from meg_editor.data.world.requests import (
            calibration_requests,
            edit_cases,
            pseudo_requests,
        )

        folders = cls(top, *load_model(MeGHyperParams.preset("default", device="cpu")))
        cases = [case.request for case in edit_cases(load_world(), 8, seed)]
        facts = {"one": cases[:4], "two": cases[5:], "pseudo": pseudo_requests()[:4]}
        facts["calibration"] = calibration_requests()[:4]
        for name, requests in facts.items():
            (top / f"{name}.json").write_text(json.dumps(list(map(vars, requests))), "utf-8")
        share()
        for name in ("one", "two"):
            made = forked(partial(folders.edit, name, top / name), top / "log")
            if made.status != 0:
                raise RuntimeError(made.text)
        folders.digests = tuple(content(folders.load(top / name)) for name in ("one", "two"))
        return folders

    def edit(self, facts: str, out: Path) -> int:
        """`meg-editor edit`, with the base model as it was loaded."""
        import meg_editor.lm.loading
        from meg_editor.cli.main import main

        meg_editor.lm.loading.load_model = lambda hparams: (self.base, self.tokenizer)
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        files = {"edits": facts, "pseudo": "pseudo", "calibration": "calibration"}
        named = [p for k, v in files.items() for p in (f"--{k}", str(self.top / f"{v}.json"))]
        return main(["edit", *named, "--out", str(out), "--device", "cpu", *settings])

    def load(self, folder: Path) -> Any:
        """The model saved in a folder."""
        from meg_editor import MeGModel

        return MeGModel.from_pretrained(folder, base=self.base)

    def save(self, name: str, folder: Path, save_base: bool = False) -> None:
        """Load a model by name, save it elsewhere."""
        self.load(self.top / name).save_pretrained(folder, save_base=save_base)

    def judge(self, folder: Path, *expected: str) -> int:
        """Load a folder; SAME if it holds what was `expected`."""
        from meg_editor.lm.reference import WrongModelError
        from meg_editor.model.saved.manifest import SavedModelError

        try:
            digest = content(self.load(folder))
        except (SavedModelError, WrongModelError, OSError) as error:
            print(f"{type(error).__name__}: {error}")  # a message can be printed
            return REFUSED
        return SAME if digest in expected else OTHER


def content(model: Any) -> str:
    """Digest of all that an edited model holds but its base."""
    digest = hashlib.sha256(repr([model.hparams, model.spec, model.edits]).encode())
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    digest.update(repr([model.encoder.pooling, model.tokenizer.padding_side, vocabulary]).encode())
    for part in (model.gate, model.generator, model.index, model.encoder):
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{name} {value.dtype}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------ damages


def damages(folders: Folders, number: int, rng: random.Random) -> Count:
    """Alter copies of the first folder, at random."""
    count = Count("damages")
    copy, log = folders.top / "copy", folders.top / "log"
    for damage in rng.choices(list(DAMAGES), list(DAMAGES.values()), k=number):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folders.top / "one", copy)
        what = damage(copy, folders.top / "two", rng)
        result = forked(lambda: folders.judge(copy, folders.digests[0]), log)
        fine = [SAME, REFUSED] + [OTHER] * (damage in (stamped_json, stamped_config))
        names = {OTHER: "loads something else", RAISED: result.last}
        problem = "" if result.status in fine else names.get(result.status or 0, "")
        if result.status not in (*fine, OTHER, RAISED):
            problem = f"exit status {result.status}: {result.last}"
        count.note(what, result.excess or problem)
    shutil.rmtree(copy, ignore_errors=True)
    return count


# -------------------------------------------------------------------------------- kills


def killed_at(point: int, work: Callable[[], Any]) -> int:
    """Do the work, but end before its n-th file operation; exit status 9 if it came so far."""
    saving: Any = import_module("meg_editor.model.saved.saving")

    seen = iter(range(1, 10**9))

    def pass_by() -> None:
        if next(seen) == point:
            os._exit(KILLED)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS or (event == "open" and _writes(arguments)):
            pass_by()

    def before(operation: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        pass_by()
        return operation(*arguments, **more)

    sys.addaudithook(hook)
    os.fsync = partial(before, os.fsync)
    saving.save_file = partial(before, saving.save_file)
    saving._save_tokenizer = partial(before, saving._save_tokenizer)
    return int(work() or 0)


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = arguments
    return not str(path).startswith("/dev/") and bool(
        flags & (os.O_WRONLY | os.O_RDWR)
        if isinstance(flags, int)
        else set(mode or "") & set("wax+")
    )


def kills(folders: Folders, every: int) -> Count:
    """End the writer of a folder before each of its file operations, and have it write again."""
    count = Count("kills")
    box, log = folders.top / "box", folders.top / "log"
    old, new = folders.digests
    writers: dict[str, tuple[str | None, Callable[[Path], Any]]] = {
        "edit, new folder": (None, lambda at: folders.edit("two", at)),
        "edit, over a folder": ("one", lambda at: folders.edit("two", at)),
        "save, new folder": (None, lambda at: folders.save("two", at)),
        "save, over a folder": ("one", lambda at: folders.save("two", at, save_base=True)),
        "save, over one with a base": ("base", lambda at: folders.save("two", at)),
    }
    forked(lambda: folders.save("one", folders.top / "base", save_base=True), log)
    for name, (former, write) in writers.items():
        expected: dict[str, str] = {}
        reached, point = True, 0  # the first run is not ended: it tells what is right
        while reached:
            shutil.rmtree(box, ignore_errors=True)
            box.mkdir()
            if former:
                shutil.copytree(folders.top / former, box / "edits")
            result = forked(partial(killed_at, point, partial(write, box / "edits")), log)
            problem = "" if result.status in (0, KILLED) else result.last
            reached = not point or result.status == KILLED
            if (box / "edits").exists() or former:
                loads = forked(partial(folders.judge, box / "edits", old, new), log)
                problem = problem or ("" if loads.status == SAME else f"then {loads.text}")
            again = forked(partial(write, box / "edits"), log)
            problem = problem or ("" if again.status == 0 else f"again: {again.last}")
            found = {n: _digest(box / n) for n in files_of(box)}
            expected = expected or found
            if wrong := {n for n in {*found, *expected} if found.get(n) != expected.get(n)}:
                problem = problem or f"again: differs in {sorted(wrong)[:5]}"
            if left := [str(p) for p in box.rglob("*") if p.name[0] == "." or p.suffix == ".part"]:
                problem = problem or f"left there: {left[:5]}"
            count.note(f"{name}, killed at {point}", problem)
            point += every if point else 1
    shutil.rmtree(box, ignore_errors=True)
    return count


def _digest(path: Path) -> str:
    """Of a file's content, but for when it was made."""
    content = path.read_bytes()
    if path.name == "edits.jsonl":
        rows = [{**json.loads(line), "when": ""} for line in content.splitlines()]
        content = json.dumps(rows).encode()
    if path.name == "meg_config.json":
        config = json.loads(content)
        del config["saved"], config["checksum"], config["files"]["edits.jsonl"]
        content = json.dumps(config).encode()
    return hashlib.sha256(content).hexdigest()


# -------------------------------------------------------------------------------- saves


def saves(folders: Folders, seconds: float) -> Count:
    """Load while two processes save two versions in turn."""
    count = Count("saves")
    shared = folders.top / "shared"
    shutil.copytree(folders.top / "one", shared)

    def save(turn: int) -> None:
        models = [folders.load(folders.top / name) for name in ("one", "two")]
        while True:
            turn += 1
            models[turn % 2].save_pretrained(shared, save_base=turn % 3 == 0)

    def load() -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (status := folders.judge(shared, *folders.digests)) != SAME:
                print(f"status {status}")
            print("load", flush=True)
        return 0

    savers = [start(partial(save, turn), folders.top / f"saver{turn}") for turn in (0, 1)]
    loading, log = start(load, folders.top / "loads"), folders.top / "loads"
    status = os.waitstatus_to_exitcode(os.waitpid(loading, 0)[1])
    for saver in savers:
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
    lines = log.read_text("utf-8").split("\n")
    for line in lines:
        if line:
            count.note("a load", "" if line == "load" else line)
    for turn in (0, 1):
        count.note("a saver", (folders.top / f"saver{turn}").read_text("utf-8"))
    after = forked(lambda: folders.judge(shared, *folders.digests), log)
    count.note("the last load", "" if (status, after.status) == (0, SAME) else after.text)
    return count


def main() -> int:
    """Run the three parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=1500)
    parser.add_argument("--every", type=int, default=1, help="of so many points of a kill one")
    parser.add_argument("--seconds", type=float, default=20, help="of the loads beside saves")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare("cli.edit", "fitting.pipeline", "model.saved.loading", "model.saved.saving")
    with tempfile.TemporaryDirectory(prefix="folders-") as top:
        folders = Folders.made_in(Path(top).resolve(), options.seed)
        parts = [damages(folders, options.damages, random.Random(options.seed))]
        parts += [kills(folders, options.every)] if options.every else []
        parts += [saves(folders, options.seconds)] if options.seconds else []
    whole = Count("folders", sum(p.tried for p in parts), [f for p in parts for f in p.failures])
    return whole.summary(", ".join(f"{p.tried} {p.name}" for p in parts))


if __name__ == "__main__":
    sys.exit(main())
