"""Draw the README's picture: the demo's scores, and scores as the edits grow.

    meg-editor demo && python docs/draw.py meg-demo/report.json     # draws docs/scores.png anew

Without a report the scores are those of docs/demo.json, which is updated when one is given. The
right half is drawn from examples/results/reference/report.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
CELLS = DOCS.parent / "examples" / "results" / "reference" / "report.json"
METRICS = ("reliability", "generality", "locality")
COLORS = {"unedited": "#b4b9c0", "meg-default": "#1f77b4", "meg-paper": "#e0913c"}
OTHERS = {
    "scen": "SCEN",
    "ft": "FT",
    "rledit": "RLEdit",
    "malmen": "MALMEN",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
}


def slim(report: dict[str, Any]) -> dict[str, Any]:
    """What is drawn of a report.json: edits, seed and four numbers per method."""
    methods = {
        name: {**{m: {"ag": entry[m]["ag"]} for m in METRICS}, "score": entry["score"]}
        for name, entry in report["methods"].items()
    }
    return {"edits": report["edits"], "seed": report["seed"], "methods": methods}


def draw(demo: dict[str, Any], cells: list[dict[str, Any]], path: Path) -> None:
    """Two panels in one PNG file."""
    figure = Figure(figsize=(9.2, 3.1), dpi=100, layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    width = 0.8 / len(demo["methods"])
    for column, (name, entry) in enumerate(demo["methods"].items()):
        heights = [entry[metric]["ag"] for metric in METRICS] + [entry["score"]]
        middles = [place + (column - 1) * width for place in range(4)]
        drawn = bars.bar(middles, heights, 0.9 * width, label=name, color=COLORS.get(name))
        bars.bar_label(drawn, fmt="%.1f", fontsize=6.5, padding=1)
    bars.set_xticks(range(4), [*(metric.capitalize() for metric in METRICS), "Score"])
    bars.set_title(f"{demo['edits']} edits: meg-editor demo", fontsize=10)
    for column, (name, title) in enumerate({"meg": "MeG", **OTHERS}.items()):
        found = {c["edits"]: c["score"] for c in cells if c["method"] == name}
        counts = sorted(found)
        style = {"color": f"C{column}", "linewidth": 2.8 if name == "meg" else 1.2}
        lines.plot(counts, [found[n] for n in counts], marker="o", ms=3, label=title, **style)
    lines.set_xscale("log")
    lines.set_xticks([64, 256, 1024, 4096, 10000], ["64", "256", "1,024", "4,096", "10,000"])
    lines.minorticks_off()
    lines.set_xlabel("edits at once", fontsize=9)
    lines.set_title("Score as the edits grow", fontsize=10)
    for axes in (bars, lines):
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 25))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    bars.set_ylabel("%", fontsize=9)
    bars.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    lines.legend(fontsize=8, frameon=False, loc="lower left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, nargs="?", help="report.json of meg-editor demo")
    parser.add_argument("--out", type=Path, default=DOCS / "scores.png")
    options = parser.parse_args()
    if options.report:
        demo = slim(json.loads(options.report.read_text("utf-8")))
        (DOCS / "demo.json").write_text(json.dumps(demo, indent=1) + "\n", "utf-8")
    demo = json.loads((DOCS / "demo.json").read_text("utf-8"))
    draw(demo, json.loads(CELLS.read_text("utf-8"))["cells"], options.out)


if __name__ == "__main__":
    main()
