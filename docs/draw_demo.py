"""Draw what `meg-editor demo --model smollm2` printed, as docs/demo.svg.

meg-editor demo --model smollm2 > docs/demo_smollm2.txt && python docs/draw_demo.py
"""

from __future__ import annotations

import argparse
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
SHOWN = ("France", "Japan", "telephone")  # a fact each, named by a word of its prompt
COLUMNS = ((13, 66, 97), (16, 104, 486, 682))  # in the text, characters; in the picture, pixels
WIDTH, ROW = 800, 25
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1f2328; }
    .head, .kind { font-size: 13px; fill: #59636e; }
    .old { fill: #59636e; }
    .new { fill: #1d4ed8; font-weight: 600; }
    path { stroke: #d5dbe3; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6e9ef; }
      .head, .kind, .old { fill: #a4adba; }
      .new { fill: #8ab4ff; }
      path { stroke: #3c4453; }
    }
  """


class Row(NamedTuple):
    """A question with both answers."""

    kind: str
    prompt: str
    before: str
    after: str


def read(text: str) -> tuple[list[list[Row]], list[str]]:
    """The rows of the printed table, fact by fact, and the lines that count."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    facts = [block for block in blocks if len(block) > 1 and not block[0][:13].isspace()]
    *tables, counts = facts
    return [[_row(line) for line in lines] for lines in tables], counts


def _row(line: str) -> Row:
    line = line.partition("  <- wrong")[0]
    cuts = (0, *COLUMNS[0], None)
    return Row(*(line[a:b].strip() for a, b in pairwise(cuts)))


def draw(facts: list[list[Row]], counts: list[str]) -> str:
    """The picture as SVG; the letters follow the colours of the page around it."""
    lines: list[str] = []
    y = 24

    def text(x: int, value: str, style: str = "") -> None:
        lines.append(f'<text x="{x}" y="{y}" class="{style}">{escape(value)}</text>')

    for x, head in zip(COLUMNS[1], ("", "question", "before", "after"), strict=True):
        text(x, head, "head")
    for rows in facts:
        y += 10
        lines.append(f'<path d="M0 {y}H{WIDTH}"/>')
        y -= 1
        for row in rows:
            y += ROW
            after = "the same" if row.before == row.after else row.after
            texts = (row.kind, row.prompt, row.before or "(nothing)", after or "(nothing)")
            styles = ("kind", "", "old", "old" if row.kind == "neighbour" else "new")
            for x, value, style in zip(COLUMNS[1], texts, styles, strict=True):
                text(x, short(value, 22) if style in ("old", "new") else value, style)
    y += 10
    lines.append(f'<path d="M0 {y}H{WIDTH}"/>')
    y += ROW
    text(COLUMNS[1][0], " · ".join(map(_short_count, counts)), "head")
    body = "\n  ".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" '
        f'width="{WIDTH}" height="{y + 14}" role="img">\n  <style>{STYLE}</style>\n'
        f"  {body}\n</svg>\n"
    )


def _short_count(line: str) -> str:
    return " ".join(line.removesuffix("with the new answer").split())


def short(text: str, length: int) -> str:
    """The text, or its first words and "…"."""
    if len(text) <= length:
        return text
    return text[:length].rpartition(" ")[0].rstrip(" .,…") + " …"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, nargs="?", default=DOCS / "demo_smollm2.txt")
    parser.add_argument("--out", type=Path, default=DOCS / "demo.svg")
    options = parser.parse_args()
    facts, counts = read(options.text.read_text("utf-8"))
    shown = [rows for word in SHOWN for rows in facts if word in rows[0].prompt]
    options.out.write_text(draw(shown, counts), "utf-8")


if __name__ == "__main__":
    main()
