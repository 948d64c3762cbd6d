"""Generated command lines of `meg-editor`, by its own parser, about things no command expects."""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.loaders.datasets import DATASETS
from tests import test_bad_requests as bad_requests
from tests import test_bad_settings as bad_settings

TEXTS = ["", " ", "a\0b", "\ud800", "bad\udcff.json", "x" * 300, "x" * 100_000, "a\nb", "\x1b[2J"]
TEXTS += [
    "{}",
    "{0}",
    "%s",
    "--",
    "-",
    "=",
    "a=b",
    "é",
    "\u202eabc",
    "~nobody-here/x",
    "../up",
    ".",
]
TEXTS += ["nan", "null", "true", "[1", "'", '"', "a/b", "a,b,,c", "all", "cuda:99", "gpu", "cpu"]
NUMBERS = [
    "0",
    "1",
    "-1",
    "1.5",
    "1e3",
    "nan",
    "inf",
    "-0",
    "+1",
    "１",
    "0x10",
    "1_0",
    " 1",
    "9" * 5000,
]
NUMBERS += ["9" * 18, "9" * 19, "2147483648", "", "one", "None", "1e999", "--1"]
# Fields of the data sets, at random: their loaders meet every shape of a record.
KEYS = [
    "prompt",
    "target_new",
    "target_true",
    "subject",
    "src",
    "answers",
    "alt",
    "rephrase",
    "loc",
]
KEYS += ["requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "str", "questions"]
KEYS += ["new_single_hops", "orig", "question", "answer", "portability", "locality", "loc_ans"]
NAMES = [entry.name for kind in (MeGHyperParams, RuntimeConfig) for entry in fields(kind)]
VALUES = [*TEXTS, *NUMBERS, *bad_settings.TAGS, *bad_settings.SURPRISES, "[1]", "[1, x]", "{a: 1}"]


@dataclass
class Sandbox:
    """A folder with things no command expects, and generators of command lines about them."""

    top: Path
    rng: random.Random
    places: list[str]

    @classmethod
    def made_in(cls, top: Path, rng: random.Random) -> Sandbox:
        """Make files, folders, pipes, links and a socket."""
        (top / "folder").mkdir()
        (top / "folder" / "mine.txt").write_text("mine")
        (top / "edits").mkdir()
        (top / "edits" / "meg_config.json").write_text('{"format_version": 3}')
        os.mkfifo(top / "pipe.json")
        os.mkfifo(top / "pipe")
        for name in ("zero", "random", "null", "stdin"):
            (top / f"{name}.json").symlink_to(f"/dev/{name}")
        (top / "loop.yaml").symlink_to("loop.yaml")
        (top / "dangling.csv").symlink_to("nowhere")
        for suffix in (".json", ".jsonl", ".csv", ".yaml", ".py", ""):
            (top / f"empty{suffix}").touch()
            (top / f"binary{suffix}").write_bytes(rng.randbytes(3000))
            (top / f"zeros{suffix}").write_bytes(b"\0" * 3000)
        for number, (suffix, text, _) in enumerate(bad_requests.BROKEN.values()):
            (top / f"broken{number}{suffix}").write_bytes(text.encode())
        for number, (content, _) in enumerate(bad_settings.BROKEN.values()):
            data = content if isinstance(content, bytes) else content.encode()
            (top / f"broken{number}.yaml").write_bytes(data)
        facts = [{"prompt": "The capital of Peru is", "target_new": "Oz", "subject": "Peru"}]
        (top / "facts.json").write_text(json.dumps(facts))
        (top / "good.yaml").write_bytes(bad_settings.PRESET.read_bytes())
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(top)  # the name of a socket must be short
            bound.bind("socket")
        places = sorted(path.name for path in top.iterdir())
        (top / "here").mkdir()
        os.chdir(top / "here")
        return cls(top, rng, places)

    def line(self) -> list[str]:
        """A command line, with few or many odd values."""
        from meg_editor.cli.parser import build_parser

        subparsers: Any = build_parser()._subparsers
        commands = subparsers._group_actions[0].choices
        name = self.rng.choice([*commands, "edit", "edit"])
        odd = self.rng.choice((0.1, 0.3, 0.8))
        arguments: list[str] = []
        for action in commands[name]._actions:
            usual = 0.97 if action.required else 0.25
            while action.dest not in ("verbose", "debug", "help") and self.rng.random() < usual:
                arguments += self._option(action, odd)
                usual = 0.1 if action.dest != "set" else 0.5
        if self.rng.random() < odd / 2:
            place = self.rng.randrange(len(arguments) + 1)
            arguments[place:place] = [self.rng.choice([*TEXTS, "--nonsense", "--e", "-x", "--set"])]
        return [self.rng.choice(TEXTS) if self.rng.random() < odd / 20 else name, *arguments]

    def _option(self, action: argparse.Action, odd: float) -> list[str]:
        if action.nargs == 0:
            return [action.option_strings[0]]
        count = self.rng.randrange(1, 4) if action.nargs in ("+", "*") else 1
        values = [
            self._odd(action) if self.rng.random() < odd else self._usual(action)
            for _ in range(count)
        ]
        if not action.option_strings:
            return values
        if count == 1 and self.rng.random() < 0.3:
            return [f"{action.option_strings[0]}={values[0]}"]
        return [action.option_strings[0], *values]

    def _usual(self, action: argparse.Action) -> str:
        """A value which an option may have."""
        if action.choices:
            return str(self.rng.choice(list(action.choices)))
        if action.dest in ("path", "training_path", "unke", "mquake", "settings_from"):
            return str(self._record())
        given = {
            "set": self.rng.choice(["seed=3", "layers=[1]", "gate=similarity", "device=cpu"]),
            "out": f"{self.top}/out/{self.rng.randrange(99)}",
            "data": self.rng.choice([*DATASETS, "reference"]),
            "methods": self.rng.choice(["unedited", "meg", "unedited,ft", "easyedit:ft"]),
            "folder": f"{self.top}/edits",
            "model": f"{self.top}/folder",
            "encoder": f"{self.top}/folder",
            "device": "cpu",
            "words": "seed",
            "question": "What?",
        }
        if action.dest in given:
            return given[action.dest]
        if action.type is Path:
            return f"{self.top}/{'good.yaml' if 'hparams' in action.dest else 'facts.json'}"
        return self.rng.choice(["1", "2", "16"])

    def _odd(self, action: argparse.Action) -> str:
        choice = self.rng.choice
        if action.dest == "set":
            return choice([f"{choice([*NAMES, 'nonsense', ''])}={choice(VALUES)}"] * 99 + TEXTS)
        if action.dest == "methods":
            mine = [f"{choice(['mine', 'ft', 'rome', ''])}={path}" for path in self._paths()]
            return choice([*mine, *mine, *TEXTS, "meg-nonsense", "easyedit:x", "ft=good.yaml"])
        if action.type is Path or action.dest in ("folder", "model", "encoder"):
            return choice([*self._paths(), str(self._record())])
        if action.choices or action.dest in ("data", "device", "question", "words"):
            return choice(TEXTS)
        return choice(NUMBERS)

    def _paths(self) -> list[str]:
        place = self.rng.choice(self.places)
        odd = ["/", "/dev/null", "/dev/zero", "/dev/null/x", "~", self.rng.choice(TEXTS)]
        return [str(self.top / place), f"{self.top / place}/x", f"../{place}", self.rng.choice(odd)]

    def _record(self) -> Path:
        """A file of JSON with the fields of data sets and values of any kind."""
        path = self.top / "record.json"
        path.write_text(json.dumps([self._json(4, 9) for _ in range(self.rng.randrange(1, 3))]))
        return path

    def _json(self, depth: int, kind: int | None = None) -> Any:
        kind = self.rng.randrange(10 if depth else 5) if kind is None else kind
        if kind < 5:
            odd: list[Any] = [
                0,
                -1,
                2.5,
                True,
                None,
                "",
                " ",
                "text",
                "The capital of {} is",
                "x" * 9999,
                [],
                {},
            ]
            return self.rng.choice(odd)
        if kind < 7:
            return [self._json(depth - 1) for _ in range(self.rng.randrange(4))]
        keys = self.rng.sample(KEYS, self.rng.randrange(1, len(KEYS)))
        return {key: self._json(depth - 1) for key in keys}
