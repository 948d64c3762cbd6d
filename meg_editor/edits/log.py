"""The log of changes in a folder: a line for each, and a shard of safetensors for what it adds.

log.jsonl            a JSON object per change, with a checksum over it and all lines before it
NNNNNN.safetensors   anchors (R, E) float32, neurons (R, P) float16 and states (R, D) float16 of
                     the R edits which change NNNNNN added

A change is in force once its line is whole on the disk. What a kill leaves behind that, the begin
of a line or a shard without one, is not read, and overwritten by the next change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load, save
from torch import Tensor

from meg_editor.edits.change import Change
from meg_editor.edits.edit import Edit
from meg_editor.edits.edition import Rows
from meg_editor.runtime.files import sync

T = TypeVar("T")

LOG = "log.jsonl"
_FIELDS = (
    "prompt",
    "target_new",
    "subject",
    "rephrases",
    "locality_prompts",
    "when",
    "by",
    "stored",
)
_LISTS = ("rephrases", "locality_prompts")
_WHOLE = re.compile(rb'"chain": "[0-9a-f]{64}"\}.')  # a line, and what is no end of it


@dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes:
        folder: of the log.
        content: its JSON object, without the checksum.
        chain: checksum of all lines up to here.
        end: bytes of the log up to here.
    """

    folder: Path
    content: Mapping[str, Any]
    chain: str
    end: int

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits which came into force."""
        return tuple(edit_of(entry) for entry in self.content["edits"])

    @property
    def shard(self) -> str | None:
        """File name of the shard; None where nothing new was added."""
        return f"{self.content['number']:06d}.safetensors" if self.content["sha256"] else None


def read_log(folder: Path, seed: str) -> list[Line]:
    """The whole lines of the log in `folder`; none without a log.

    Args:
        seed: what the checksum of the first line begins with.

    Raises:
        ValueError: a line was changed, or belongs to another log.
    """
    path = folder / LOG
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines: list[Line] = []
    chain, end = seed, 0
    for raw in content.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            if _WHOLE.search(raw):
                raise ValueError(f"line {len(lines) + 1} of the log has no end: it was changed")
            break
        end += len(raw)
        parsed, chain = _checked(raw, chain, len(lines) + 1)
        lines.append(Line(folder, parsed, chain, end))
    return lines


@dataclass(frozen=True)
class End:
    """The end of a log: the checksum of all its lines, and their bytes.

    Example:
        >>> End("seed").bytes
        0
    """

    chain: str
    bytes: int = 0

    @classmethod
    def of(cls, lines: Sequence[Line], seed: str) -> End:
        """The end of these lines."""
        return cls(lines[-1].chain, lines[-1].end) if lines else cls(seed)

    def is_last(self, folder: Path) -> bool:
        """Whether no whole line follows it in the log in `folder`."""
        try:
            with (folder / LOG).open("rb") as file:
                file.seek(0, os.SEEK_END)
                if file.tell() < self.bytes:
                    return False
                file.seek(self.bytes)
                return b"\n" not in file.read()
        except FileNotFoundError:
            return not self.bytes


def append_changes(folder: Path, end: End, changes: Iterable[Change]) -> End:
    """Append changes behind the end of the log in `folder`, in one transaction; the new end.

    The caller holds the folder's lock. What is there already is not read: the cost is that of the
    changes.

    Raises:
        OSError: none of the changes is in force.
    """
    begin, lines = end.bytes, b""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)
        sync(folder.parent.parent)
    for change in changes:
        content = _content(change)
        if change.added.edits and change.undoes is None:
            shard = save(_tensors(change.added))
            content["sha256"] = hashlib.sha256(shard).hexdigest()
            # Whole before its line is written, and nothing reads it before.
            _append(folder / f"{change.number:06d}.safetensors", 0, shard)
            sync(folder)
        chain = _link(content, end.chain)
        raw = json.dumps({**content, "chain": chain}, ensure_ascii=False).encode() + b"\n"
        lines += raw
        end = End(chain, end.bytes + len(raw))
    _append(folder / LOG, begin, lines)
    sync(folder)
    return end


def shard_rows(line: Line) -> Rows:
    """The rows which a line added.

    Raises:
        ValueError: the shard is missing, or another one.
    """
    if line.shard is None:
        return Rows.none()
    content = (line.folder / line.shard).read_bytes()
    if hashlib.sha256(content).hexdigest() != line.content["sha256"]:
        raise ValueError(f"{line.shard}: cut short or changed: its sha256 is another one")
    tensors = load(content)
    return Rows(line.edits, tensors["anchors"], tensors["neurons"], tensors.get("states"))


def entry_of(edit: Edit) -> dict[str, Any]:
    """An edit as a JSON object.

    Example:
        >>> edit = Edit("The capital of France is", "Lima", "France")
        >>> edit_of(entry_of(edit)) == edit
        True
    """
    return {name: getattr(edit, name) for name in _FIELDS}


def edit_of(entry: Mapping[str, Any]) -> Edit:
    """The edit of a JSON object; what an older format lacks is unknown."""
    known = {name: entry[name] for name in _FIELDS if name in entry}
    return Edit(**{**known, **{name: tuple(known.get(name, ())) for name in _LISTS}})


def _content(change: Change) -> dict[str, Any]:
    return {
        "number": change.number,
        "kind": change.kind,
        "when": change.when,
        "undoes": change.undoes,
        "edits": [entry_of(edit) for edit in change.added.edits],
        "removed": [edit.id for edit in change.removed.edits],
        "not_learned": list(change.not_learned),
        "sha256": None,
    }


def _tensors(rows: Rows) -> dict[str, Tensor]:
    tensors = {"anchors": rows.anchors.float(), "neurons": rows.neurons.half()}
    if rows.states is not None:
        tensors["states"] = rows.states
    return {name: value.contiguous() for name, value in tensors.items()}


def _link(content: Mapping[str, Any], chain: str) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(f"{chain}\n{text}".encode()).hexdigest()


def _checked(raw: bytes, chain: str, number: int) -> tuple[dict[str, Any], str]:
    try:
        entry = json.loads(raw)
        content = {key: value for key, value in entry.items() if key != "chain"}
        found = entry["chain"]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"line {number} of the log is damaged: {error}") from error
    if found != _link(content, chain):
        raise ValueError(
            f"line {number} of the log was changed since it was written, or belongs to another log"
        )
    return content, str(found)


def _append(path: Path, end: int, raw: bytes) -> None:
    """Write `raw` at byte `end` of a file, behind which nothing stays; on the disk on return."""
    # Without a buffer: what failed to be written is not tried again when the file is closed.
    with path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
        file.truncate(end)
        file.seek(end)
        try:
            left = memoryview(raw)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(end)
            raise


def applied(
    lines: Iterable[Line], alive: dict[str, T], new: Callable[[Line], dict[str, T]]
) -> Iterator[tuple[Line, dict[str, T], dict[str, T]]]:
    """Lines in order, each with what it takes out of force and what it brings into it, by id.

    Args:
        alive: what is in force before the first line; it is changed by each.
        new: what a line brings into force that was not there before.

    Raises:
        ValueError: a line does not fit those before it.
    """
    removed: dict[int, dict[str, T]] = {}
    for line in lines:
        content = line.content
        if unknown := [each for each in content["removed"] if each not in alive]:
            raise ValueError(f"change {content['number']} removes {unknown[0]}, which is none")
        gone = removed[content["number"]] = {each: alive.pop(each) for each in content["removed"]}
        back = removed.get(content["undoes"] or 0)
        added = new(line) if back is None else back
        alive.update(added)
        yield line, gone, added


def replayed(lines: Iterable[Line], alive: dict[str, Edit]) -> tuple[Edit, ...]:
    """The edits in force after the lines of a log; before them those of `alive`, by id.

    Raises:
        ValueError: a line does not fit those before it.
    """
    for _ in applied(lines, alive, lambda line: {edit.id: edit for edit in line.edits}):
        pass
    return tuple(alive.values())
