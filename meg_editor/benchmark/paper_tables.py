"""The paper's tables on one model: its variants, and whether its findings hold here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meg_editor.benchmark.ablations import Ablation, Cells, ablations, variant
from meg_editor.benchmark.capacity import Capacity, capacity
from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.definition import Benchmark
from meg_editor.benchmark.method_spec import resolve_method
from meg_editor.benchmark.plots import plot_layers, plot_score_histogram, plot_thresholds
from meg_editor.benchmark.pool import only_wrong
from meg_editor.benchmark.runner import run_benchmark
from meg_editor.benchmark.tables import score_table
from meg_editor.collection.layer_sweep import layer_sweep
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import Dataset
from meg_editor.data.preprocessing import without_conflicts
from meg_editor.data.splits import split_cases, tuning_requests
from meg_editor.evaluation.report import machine, versions
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.text_files import write_json, write_text

_LAYER_FACTS = 64
ReportLine = Callable[[str], None]


@dataclass(frozen=True)
class Section:
    """One table of the report.

    Attributes:
        title: with the paper's number.
        body: Markdown.
        findings: of the paper, and whether they hold here.
        data: for the JSON.
    """

    title: str
    body: str
    findings: tuple[str, ...]
    data: Any


def run_tables(
    benchmark: Benchmark,
    model: CausalLM,
    tokenizer: Tokenizer,
    out: Path,
    *,
    unke: Dataset | None = None,
    mquake: Dataset | None = None,
    only: Sequence[int] | None = None,
    long_answers: int = 100,
    plots: bool = False,
    command: str = "",
    report: ReportLine = print,
) -> list[Section]:
    """Tables 4 to 8, 15 and 16 on `benchmark`, 17 on `unke`, 18 on `mquake`; figures 5 to 7.

    Writes tables.json, tables.md and with `plots` PNG files to `out`; cells are kept there, and
    variants which several tables share are run once.

    Args:
        only: numbers of the tables to run; None: all.
        long_answers: facts of table 17.
        command: the command line.
        report: called with a line per cell.
    """
    edits = sorted(benchmark.edits)
    sections: list[Section] = []

    def add(section: Section) -> None:
        sections.append(section)
        _write(sections, benchmark, edits, out, command)  # what comes next may fail

    chosen = [a for a in ablations(benchmark.hparams) if not only or a.table in only]
    if chosen and not benchmark.whole_pool:  # once, not for every table
        store = ArtifactStore(out / "stages")
        pool = only_wrong(benchmark.split.edited, model, tokenizer, benchmark.hparams, store)
        split = dataclasses.replace(benchmark.split, edited=tuple(pool))
        benchmark = dataclasses.replace(benchmark, split=split, whole_pool=True)
    for ablation in chosen:
        cells = _run(ablation, benchmark, edits, model, tokenizer, out, report)
        add(_section(ablation, cells, edits))
        if plots and ablation.table == 16:
            plot_thresholds(cells, out / "thresholds.png")
        if plots and ("with gate", edits[-1]) in cells:
            plot_score_histogram(cells["with gate", edits[-1]], out / "gate-scores.png")
    if unke and (not only or 17 in only):
        facts = [case.request for case in unke.cases]
        held = capacity(model, tokenizer, facts, benchmark.hparams, benchmark.encode, long_answers)
        add(_long_text(held))
    if mquake and (not only or 18 in only):
        add(_multi_hop(benchmark, mquake, model, tokenizer, out, report))
    if not only:
        add(_layers(benchmark, model, tokenizer, out if plots else None))
    return sections


def _run(
    ablation: Ablation,
    benchmark: Benchmark,
    edits: Sequence[int],
    model: CausalLM,
    tokenizer: Tokenizer,
    out: Path,
    report: ReportLine,
) -> dict[tuple[str, int], Cell]:
    methods = {
        name: variant(benchmark.hparams, changes) for name, changes in ablation.variants.items()
    }
    counts = edits if ablation.scaled else edits[-1:]
    variants = dataclasses.replace(benchmark, methods=list(methods.values()), edits=counts, seeds=1)
    cells = {
        (cell.method, cell.edits): cell
        for cell in run_benchmark(variants, model, tokenizer, out, report)
    }
    for name, method in methods.items():
        if not all((method.name, count) in cells for count in counts):
            raise ValueError(
                f"table {ablation.table}: {name} could not be measured, see the message above"
            )
    return {
        (name, count): cells[method.name, count]
        for count in counts
        for name, method in methods.items()
    }


def _section(ablation: Ablation, cells: Cells, edits: Sequence[int]) -> Section:
    counts = sorted({count for _, count in cells})
    parts = []
    for count in counts:
        rows = {name: [cell] for (name, edited), cell in cells.items() if edited == count}
        heading = f"{count} edits\n\n" if len(counts) > 1 else ""
        parts.append(heading + score_table(rows))
    findings = tuple(
        f"{finding.text}: {finding.verdict(cells, edits)}" for finding in ablation.findings
    )
    data = {f"{name}, {count} edits": cell.to_dict() for (name, count), cell in cells.items()}
    title = f"Table {ablation.table}: {ablation.title}"
    return Section(title, "\n\n".join(parts), findings, data)


def _long_text(held: Capacity) -> Section:
    body = (
        "| Facts | Tokens | FT_ACC | Word for word | Similarity |\n|--:|--:|--:|--:|--:|\n"
        f"| {held.facts} | {held.tokens:.0f} | {held.fine_tuning_accuracy:.1f} "
        f"| {held.reproduced:.1f} | {held.similarity:.1f} |"
    )
    agrees = held.fine_tuning_accuracy >= 98
    verdict = "as in the paper" if agrees else "AGAINST the paper"
    text = f"one neuron holds an answer of about 100 tokens (FT_ACC of at least 98): {verdict}"
    return Section("Table 17: long answers", body, (text,), dataclasses.asdict(held))


def _multi_hop(
    benchmark: Benchmark,
    mquake: Dataset,
    model: CausalLM,
    tokenizer: Tokenizer,
    out: Path,
    report: ReportLine,
) -> Section:
    # Chains need several facts about one subject: no thinning here.
    split = split_cases(without_conflicts(mquake.cases))
    chained = {prompt for chain in mquake.multi_hop for prompt in chain.edits}
    pool = tuple(case for case in split.edited if case.request.prompt in chained)
    h = benchmark.hparams
    chained_facts = dataclasses.replace(
        benchmark,
        data=mquake.name,
        split=dataclasses.replace(split, edited=pool),
        facts=None,
        methods=[resolve_method(name, h, h) for name in ("unedited", "meg")],
        edits=(min(max(benchmark.edits), len(pool)),),
        seeds=1,
        multi_hop=mquake.multi_hop,
        whole_pool=True,
    )
    cells = run_benchmark(chained_facts, model, tokenizer, out, report)
    rows = {cell.method: cell.multi_hop for cell in cells if cell.multi_hop}
    lines = ["| Method | Chains | Edit-wise | Instance-wise | Multi-hop |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {name} | {row['chains']} | {row['edit_wise']:.1f} | {row['instance_wise']:.1f} "
        f"| {row['multi_hop']:.1f} |"
        for name, row in rows.items()
    ]
    text = "edits carry over to questions of several hops: "
    if {"meg", "unedited"} <= set(rows):
        gap = rows["meg"]["multi_hop"] - rows["unedited"]["multi_hop"]
        text += f"{'as in the paper' if gap > 1 else 'AGAINST the paper'} ({gap:+.1f})"
    else:
        text += "not measured: these edits are all of no chain"
    return Section("Table 18: questions of several hops", "\n".join(lines), (text,), rows)


def _layers(
    benchmark: Benchmark, model: CausalLM, tokenizer: Tokenizer, folder: Path | None
) -> Section:
    facts = tuning_requests(benchmark.split.calibration, _LAYER_FACTS, seed=0)
    results = layer_sweep(model, tokenizer, facts, benchmark.hparams)
    if folder:
        plot_layers(results, folder / "layers.png")
    lines = ["| Layer | Reliability AG | Generality AG |", "|--:|--:|--:|"]
    for result in results:
        generality = "-" if result.generality is None else f"{result.generality:.1f}"
        lines.append(f"| {result.layer} | {result.reliability:.1f} | {generality} |")
    title = f"Figures 5 to 7: layers, {len(facts)} calibration facts with their own neurons"
    data = [dataclasses.asdict(result) for result in results]
    return Section(title, "\n".join(lines), (), data)


def _write(
    sections: Sequence[Section],
    benchmark: Benchmark,
    edits: Sequence[int],
    out: Path,
    command: str,
) -> None:
    hparams: MeGHyperParams = benchmark.hparams
    parts = [
        f"# The paper's tables on {benchmark.data}, {edits[-1]} edits "
        f"({hparams.gate} gate, {hparams.generator} generator; percent)\n"
    ]
    for section in sections:
        parts += [f"## {section.title}\n", section.body, ""]
        if section.findings:
            parts += ["The paper finds:\n", *(f"- {text}" for text in section.findings), ""]
    content = {
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "findings": {section.title: section.findings for section in sections},
        "tables": {section.title: section.data for section in sections},
    }
    write_json(out / "tables.json", content)
    write_text(out / "tables.md", "\n".join(parts))
