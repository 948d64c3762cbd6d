"""Broken command lines, files of edits, of settings and of data sets: each is refused in a line.

    python tests/campaigns/inputs.py [--commands 4000] [--requests 2500] [--settings 2000]
                                      [--seed 0]

prints one line per failure and `inputs tried=... failed=...`; exits with 1 if anything failed.

A command line ends with exit status 2 and one line of error (after the usage, if its form is
wrong), or is accepted: 0, or as far as loading the model. No traceback, nothing written outside the
folder of the campaign, at most 5 s of computing. Files are made by the generators of
`tests/test_bad_requests.py` and `tests/test_bad_settings.py`, with other seeds.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from tests import test_bad_requests as bad_requests
from tests import test_bad_settings as bad_settings
from tests.campaigns.command_lines import Sandbox
from tests.campaigns.forked import CPU, Count, forked, prepare, share

ACCEPTED, WROTE = 42, 43  # exit statuses


def run_line(arguments: list[str], top: Path) -> int:
    """Run `main` where no model is loaded, and nothing may be written but below `top`."""
    from meg_editor.cli.main import main

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "open"):
            if event == "open" and not (isinstance(given[2], int) and given[2] & 3):
                return
            path = os.path.abspath(os.fsdecode(given[0])) if not isinstance(given[0], int) else ""
            there = event == "os.mkdir" and os.path.isdir(path)
            if path and not there and not path.startswith((str(top), "/dev/")):
                os.write(2, f"wrote {path}".encode("utf-8", "replace"))
                os._exit(WROTE)

    def load_model(*_: Any) -> None:
        raise SystemExit(ACCEPTED)

    for name in ("lm.loading", "cli.benchmark_commands", "cli.demo"):
        import_module(f"meg_editor.{name}").load_model = load_model  # type: ignore[attr-defined]
    sys.addaudithook(hook)
    return main(arguments)


def commands(box: Sandbox, number: int) -> Count:
    """Generated command lines, each in a process of its own."""
    count = Count("commands")
    for _ in range(number):
        line = box.line()
        result = forked(partial(run_line, line, box.top), box.top / "log")
        problem = result.excess
        if result.status == 2:
            *usage, last = result.text.rstrip("\n").split("\n")
            if any(line and not re.match("usage: |  ", line) for line in usage):
                problem = problem or f"more than a line: {result.text[-300:]!r}"
            if not re.match(r"meg-editor.*: error: .", last) or len(last) > 1000:
                problem = problem or f"no line of error: {last[:300]!r}"
            if not last.isprintable():
                problem = problem or f"control characters: {last[:300]!r}"
        elif result.status not in (0, ACCEPTED) or "Traceback" in result.text:
            problem = problem or f"exit status {result.status}: {result.text[-400:]!r}"
        count.note(" ".join(repr(part[:60]) for part in line), problem)
    return count


def checks(name: str, number: int, makers: list[Callable[[int], None]], seed: int) -> Count:
    """Run checks of the tests with other seeds; each raises if something is wrong."""
    count = Count(name)
    for turn in range(number):
        begin, problem = time.process_time(), ""
        try:
            makers[turn % len(makers)](1_000_000 * (seed + 1) + turn)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # those of pytest are no Exceptions
            problem = f"{type(error).__name__}: {str(error)[:300]}"
        if (seconds := time.process_time() - begin) > CPU:
            problem = problem or f"computed for {seconds:.1f} s"
        count.note(f"{name}, check {turn % len(makers)}, seed {turn}", problem)
    return count


def request_makers(top: Path) -> list[Callable[[int], None]]:
    """Checks of files of edits."""
    one = bad_requests
    several: list[Callable[[int], None]] = [
        partial(one.test_prompts_that_look_the_same_are_the_same, top)
    ]
    for suffix in one.SUFFIXES:
        several.append(partial(one.test_an_unusable_character_is_named_with_its_field, top, suffix))
        if suffix != ".csv":
            several.append(
                partial(one.test_texts_without_a_visible_character_are_empty, top, suffix)
            )
        for damage in one.DAMAGES:
            several.append(partial(_damaged, top / f"f{suffix}", damage))
    return several


def _damaged(path: Path, damage: bad_requests.Damage, seed: int) -> None:
    bad_requests.check_damaged(path, damage, random.Random(seed))


def setting_makers(top: Path) -> list[Callable[[int], None]]:
    """Checks of files of settings."""
    one = bad_settings

    def odd(seed: int) -> None:
        rng = random.Random(seed)
        text = rng.choice([*one.TAGS, *one.SURPRISES])
        one.refused(
            one.write(top, f"device: cpu\n{rng.choice(list(one.HINTS))}: {text}\n"), "line 2"
        )

    def bounds(seed: int) -> None:
        rng = random.Random(seed)
        one.test_every_number_has_bounds(rng.choice(one.CLASSES), rng.randrange(21, 5000))

    def damaged(seed: int) -> None:
        one.check_damaged(top, random.Random(seed))

    return [damaged, damaged, damaged, odd, odd, bounds]


def main() -> int:
    """Run the three parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("commands", 4000), ("requests", 2500), ("settings", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inputs-") as name:
        top = Path(name).resolve()
        os.environ |= {"HOME": str(top), "HF_HOME": str(top / "hub"), "TMPDIR": str(top)}
        prepare("cli.ask", "cli.demo", "cli.layers", "cli.benchmark_commands", "cli.settings")
        share()
        box = Sandbox.made_in(top, random.Random(options.seed))
        parts = [
            checks("requests", options.requests, request_makers(top), options.seed),
            checks("settings", options.settings, setting_makers(top), options.seed),
            commands(box, options.commands),
        ]
        os.chdir("/")
    whole = Count("inputs", sum(p.tried for p in parts), [f for p in parts for f in p.failures])
    return whole.summary(", ".join(f"{p.tried} {p.name}" for p in parts))


if __name__ == "__main__":
    sys.exit(main())
