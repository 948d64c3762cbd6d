"""mkdocs hook: what is written anew at each build: commands, settings, notebooks."""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

from meg_editor.cli.parser import build_parser  # noqa: E402
from meg_editor.cli.settings import grouped_settings  # noqa: E402
from meg_editor.config.hparams import MeGHyperParams  # noqa: E402

NOTEBOOKS = "examples/notebooks"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_OTHER = (argparse._HelpAction, argparse._SubParsersAction)


def cell(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def commands_text() -> str:
    """Every command of `meg-editor` with its options, from the parsers themselves."""
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    rows = [(f"[`{name}`](#{name})", cell(helps[name])) for name in commands.choices]
    every = [set(options_of(command)) for command in commands.choices.values()]
    common = set.intersection(*every)
    shared = [action for text, action in options_of(parser).items() if text in common]
    parts = [table(("command", "what it does"), rows), "Every command takes these:\n"]
    parts.append(options_table(shared))
    for name, command in commands.choices.items():
        actions = [action for text, action in options_of(command).items() if text not in common]
        needed = [shown(a) for a in actions if a.required or not a.option_strings]
        rest = ["[options]"] if len(needed) < len(actions) else []
        parts += [f"## {name}\n", f"{command.description}\n"]
        usage = " ".join(["meg-editor", name, *needed, *rest])
        parts.append(f"```text\n{usage}\n```\n")
        parts.append(options_table(actions))
        parts += [f"{command.epilog}\n"] if command.epilog else []
    return "\n".join(parts)


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options and arguments as they are typed."""
    actions = (action for action in parser._actions if not isinstance(action, _OTHER))
    return {shown(action): action for action in actions}


def options_table(actions: Iterable[argparse.Action]) -> str:
    """A row for each; without one, nothing."""
    rows = [(f"`{cell(shown(action))}`", cell(action.help or "")) for action in actions]
    return table(("option", "meaning"), rows) if rows else ""


def shown(action: argparse.Action) -> str:
    """An option as it is typed: `--edits N`."""
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        name = action.dest.upper() if action.option_strings else action.dest
        value = str(action.metavar or name)
    value += " …" if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return value
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")


def settings_text() -> str:
    """Every setting by stage: its default, the paper's value where it differs, its help."""
    default, paper = (MeGHyperParams.preset(name).to_dict() for name in ("default", "paper"))
    parts = []
    for title, entries in grouped_settings().items():
        rows = []
        for entry in entries:
            value = default.get(entry.name, entry.default)
            own = json.dumps(paper.get(entry.name, value))
            text = json.dumps(value) if isinstance(value, str | int | float | list | None) else "-"
            rows.append(
                (
                    f"`{entry.name}`",
                    f"`{cell(text)}`",
                    f"`{cell(own)}`" if own != text else "",
                    cell(entry.metadata["help"]),
                )
            )
        parts += [f"## {title}\n", table(("setting", "default", "paper", "meaning"), rows)]
    return "\n".join(parts)


def merged(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of a cell, what it printed in one piece."""
    result: list[dict[str, Any]] = []
    for output in outputs:
        if result and "text" in output and "text" in result[-1]:
            output = {**output, "text": [*result.pop()["text"], *output["text"]]}
        result.append(output)
    return result


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for entry in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(entry["source"])
        if entry["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in merged(entry["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![The picture that this cell draws]({name})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            else:
                text = "".join(output.get("text") or data.get("text/plain", ""))
                parts.append(f"```text\n{_ANSI.sub('', text).rstrip()}\n```")
    source = f"[The notebook]({path.name}) itself, to run.\n"
    return "\n\n".join([*parts, source]), pictures


def on_files(files: Any, config: Any) -> Any:
    """Add the notebooks, as pages, pictures and files."""
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        folder = f"repository/{NOTEBOOKS}"
        text, pictures = notebook_page(path)
        files.append(File.generated(config, f"{folder}/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"{folder}/{name}", content=picture))
        files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """The page's Markdown with its marks filled."""
    for name, written in (("commands", commands_text), ("settings", settings_text)):
        if match := re.search(rf"^<!-- {name}: .* -->$", markdown, re.MULTILINE):
            markdown = markdown.replace(match[0], written())
    return markdown
