"""The report of an edited model and its model card: what they say is so, and nothing in it runs."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_cli import Command, refused, run, tree  # noqa: F401 - `run` is a fixture

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.cli import main as cli
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.edits.edit import Edit
from meg_editor.evaluation.metrics import mentions
from meg_editor.lm.answers import greedy_answers
from meg_editor.model.meg_model import MeGModel
from meg_editor.reports import page as pages
from meg_editor.reports.card import card
from meg_editor.reports.histogram import bin_edges, histogram
from meg_editor.reports.measure import measure
from meg_editor.reports.model_report import ModelReport, ScoreGroup, Share
from meg_editor.reports.page import page
from meg_editor.reports.prompts import INVENTED, LOCALITY, PHRASEBOOK, other_prompts
from meg_editor.reports.texts import size
from meg_editor.requests.request import EditRequest

ALLOWED = {"https://arxiv.org/abs/2512.14395"}
EVIL = EditRequest(
    'Is <script>alert("p")</script> & $name | `x` a prompt?', "<script>alert('t')</script>"
)


class Reader(HTMLParser):
    """Reads a page strictly: every tag is closed, in order. Collects cells, links and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}  # by the heading above
        self._heading = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":  # the only one without an end
            self.open.append(tag)
        if tag == "h2":
            self._heading = ""
        if tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        if tag in ("td", "th"):
            self.tables[self._heading][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self._heading += data
        if {"td", "th"} & {*self.open}:
            self.tables[self._heading][-1][-1] += data

    def rows(self, heading: str) -> list[list[str]]:
        """The rows of the table below a heading, without its first one."""
        return self.tables[heading][1:]


@pytest.fixture(scope="module")
def edited() -> MeGModel:
    """Seven facts of the reference world; one was replaced, and one is an attack."""
    hparams = MeGHyperParams.preset("default", device="cpu")
    requests = [case.request for case in edit_cases(load_world(), 7, 0)]
    first = dataclasses.replace(
        requests[0], rephrases=("Of old:",), locality_prompts=("Who wrote Emma?",)
    )
    model, _ = fit(*load_model(hparams), [first, *requests[1:]], hparams)
    model.replace([dataclasses.replace(requests[1], target_new="Lima")])
    model.add([EVIL], on_conflict="keep")
    return model


@pytest.fixture(scope="module")
def folder(edited: MeGModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("secret") / "edits of <mine>"
    edited.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The page and the card which the command writes."""
    out = tmp_path_factory.mktemp("out")
    files = ["--out", str(out / "new" / "report.html"), "--card", str(out / "README.md")]
    before = tree(folder)
    assert cli.main(["report", str(folder), *files, "--device", "cpu"]) == 0
    assert tree(folder) == before
    return (out / "new" / "report.html").read_text("utf-8"), (out / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def read(written: tuple[str, str]) -> Reader:
    return Reader(written[0])


@pytest.fixture(scope="module")
def report(edited: MeGModel, folder: Path) -> ModelReport:
    return measure(edited, folder, edits=3)


# ------------------------------------------------------------------------- what it says is so


def test_the_edits_are_those_of_the_model(edited: MeGModel, read: Reader) -> None:
    rows = {row[0]: row[1:] for row in read.rows("The edits")}
    assert [*rows] == [edit.id for edit in edited.edits] and len(rows) == 8
    for edit in edited.edits:
        before = greedy_answers(edited.base, edited.tokenizer, [edit.prompt], 32)[0]
        after = edited.answer(edit.prompt)[0]
        right = "yes" if after == edit.target_new else "no"
        assert rows[edit.id] == [edit.prompt, before, after, edit.target_new, right]
    assert [row[-1] for row in rows.values()].count("yes") >= 7
    assert "All of them are asked." in read.text and "8 edits of meg_editor:llama" in read.text


def test_other_words_are_counted(edited: MeGModel, read: Reader) -> None:
    rows = {row[0]: row[2:] for row in read.rows("Asked in other words")}
    texts = {
        "Please answer: …": "Please answer: {}",
        "… Answer in one word.": "{} Answer in one word.",
    }
    for form, text in texts.items():
        prompts = [text.format(edit.prompt) for edit in edited.edits]
        right = [
            routed.is_edit and routed.edit == row
            for row, routed in enumerate(edited.route(prompts))
        ]
        answers = edited.answer(prompts)
        given = [mentions(a, e.target_new) for a, e in zip(answers, edited.edits, strict=True)]
        for cell, count in zip(rows[form], (sum(right), int(sum(given))), strict=True):
            assert cell.endswith(f"{count} of 8")
    assert rows["rephrases given with the edits"][0].endswith("of 1")
    assert rows["in the chat template"][0].endswith("of 8")


def test_other_prompts_are_counted(edited: MeGModel, read: Reader) -> None:
    kinds = other_prompts(edited.edits, edited.edits, 100)
    assert [*kinds] == [INVENTED, PHRASEBOOK, LOCALITY] and kinds[LOCALITY] == ["Who wrote Emma?"]
    rows = {row[0]: row[2] for row in read.rows("Prompts which ask for something else")}
    alone = 0
    for kind, prompts in kinds.items():
        left = sum(not routed.is_edit for routed in edited.route(prompts))
        assert rows[kind].endswith(f"{left} of {len(prompts)}")
        alone += left
    assert f"{alone} of 201" in read.text and "64 of 64 answers are the same" in read.text
    assert f"threshold {edited.route('')[0].threshold:.3f}" in read.text


def test_costs_history_settings_and_versions(edited: MeGModel, folder: Path, read: Reader) -> None:
    costs = dict(read.rows("What it costs"))
    assert costs["of these three, an edit"] == size(edited.stored_bytes / 8)
    assert costs["folder on the disk"] == size(sum(map(len, tree(folder).values())))
    assert costs["neurons (generator)"] == size(8 * 2 * (513 + 256))  # float16 neurons and keys
    changes = read.rows("Changes")
    assert [row[2] for row in changes] == ["add", "replace"]
    assert EVIL.prompt in changes[0][3] and "Lima" in changes[1][3] and not changes[0][4]
    settings = dict(read.rows("Settings"))
    assert settings["layers"] == "[2]" and settings["encoder_name"] == '"meg_editor:bert-reference"'
    assert "seed" not in settings and "model_name" not in settings
    assert "torch" in {row[0] for row in read.rows("Versions")}


def test_a_sample_says_so(edited: MeGModel, report: ModelReport, folder: Path) -> None:
    read = Reader(page(report))
    assert "A sample of 3 of the 8 edits, drawn with seed 0." in read.text
    ids = [row[0] for row in read.rows("The edits")]
    assert len(ids) == 3 and {*ids} < {edit.id for edit in edited.edits}
    again = measure(edited, folder, edits=3)
    assert again.answers == report.answers and again.forms == report.forms
    assert again.others == report.others and again.scores == report.scores
    assert measure(edited, folder, edits=3, seed=1).answers != report.answers


def test_a_model_without_edits(edited: MeGModel, tmp_path: Path) -> None:
    empty = edited.fork()
    empty.remove([edit.id for edit in empty.edits])
    empty.save_pretrained(tmp_path / "empty")
    report = measure(empty, tmp_path / "empty")
    assert report.edits == 0 and report.right == Share(0, 0) and report.threshold is None
    assert "nothing is let through" in Reader(page(report)).text
    assert "There are 0 edits" in card(report) and "0 edits of" in str(report)


@pytest.mark.parametrize("gate", ["similarity", "familiarity"])
def test_every_gate(gate: str, make_meg_model: object, tmp_path: Path) -> None:
    """Scores which are no probabilities, and a model without a name."""
    model = make_meg_model(gate=gate)  # type: ignore[operator]
    model.save_pretrained(tmp_path / "edits")
    report = measure(model, tmp_path / "edits")
    assert report.judge == f"the {gate} gate" and report.base == "LlamaForCausalLM"
    assert report.scores[0].let_through == Share(6, 6) and report.base_id is None
    read = Reader(page(report))
    assert len(read.rows("The edits")) == 6 and {"svg", "rect"} <= read.tags


# ------------------------------------------------------------------- the page is safe to open


def test_nothing_runs_and_nothing_is_fetched(written: tuple[str, str], read: Reader) -> None:
    text = written[0]
    assert "script" not in read.tags and "&lt;script&gt;" in text
    assert not {name for name in read.attributes if name.startswith("on")} | (
        read.tags & {"img", "link", "iframe", "object", "base", "form"}
    )
    assert {*read.links} == ALLOWED
    assert not re.search(r"url\(|@import", text)
    assert {*re.findall(r"https?://[^\s\"'<>]+", text)} == ALLOWED
    assert "default-src 'none'" in text


def test_texts_of_others_are_shown_as_they_are(read: Reader) -> None:
    row = next(row for row in read.rows("The edits") if row[1] == EVIL.prompt)
    assert row[4] == EVIL.target_new
    assert "edits of <mine>" in read.text


def test_no_path_of_the_machine(written: tuple[str, str], folder: Path) -> None:
    for text in written:
        assert str(folder.parent) not in text and str(Path.home()) not in text
        assert folder.parent.name not in text


def test_the_histogram_splits_at_the_threshold() -> None:
    for low, high, threshold in ((0, 1, 0.1), (-2.3, -0.01, -0.2), (0, 1, 0.999), (0.5, 0.5, 0.5)):
        edges = bin_edges([low, high], threshold)
        assert edges == sorted(edges) and threshold in edges and len(edges) == 41
    group = ScoreGroup("<mine>", (0.0, 0.0999, 0.1, 1.0), Share(2, 4))
    drawing = histogram([group], 0.1)
    assert drawing.count('class="through"') == drawing.count('class="alone"') == 2
    Reader(drawing)


# ------------------------------------------------------------------------------ the model card


def test_the_card_has_front_matter_of_the_hub(
    written: tuple[str, str], report: ModelReport
) -> None:
    data = ModelCard(written[1]).data
    assert data.library_name == "meg_editor" and data.base_model is None and data.license is None
    assert {"model-editing", "knowledge-editing"} <= {*data.tags}
    on_hub = dataclasses.replace(report, base="org/name", base_id="org/name")
    data = ModelCard(card(on_hub)).data
    assert (data.base_model, data.base_model_relation) == ("org/name", "adapter")


def test_the_card_says_what_was_measured(
    edited: MeGModel, written: tuple[str, str], report: ModelReport
) -> None:
    text = written[1]
    right = sum(
        a == e.target_new
        for a, e in zip(
            edited.answer([edit.prompt for edit in edited.edits]), edited.edits, strict=True
        )
    )
    assert f"({right} of 8)" in text and "2512.14395" in text and "from_pretrained" in text
    assert edited.edits[0].target_new in text
    assert "<script>" not in text and r"\<script\>" in text and r"\| \`x\`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4}
    evil = dataclasses.replace(report, name="---\nx: 1\n# <b>")
    assert ModelCard(card(evil)).data.to_dict() == ModelCard(card(report)).data.to_dict()


# ---------------------------------------------------------------------------------- prompts


def test_other_prompts_name_no_edited_subject() -> None:
    edits = [Edit(f"The capital of {name} is", "Lima", name) for name in ("France", "Iron", "Jazz")]
    bare = Edit("Who wrote Emma?", "Joyce")
    for kind, prompts in other_prompts([*edits, bare], [*edits, bare], 50).items():
        assert len({*prompts}) == 50, kind
        for prompt in prompts:
            assert not re.search("france|iron|jazz|emma", prompt.casefold())
    assert [*other_prompts([bare], [bare], 5)] == [PHRASEBOOK]


# --------------------------------------------------------------------------------- bad input


def test_bad_input_ends_in_one_line(run: Command, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out, file = ("--out", tmp_path / "report.html"), tmp_path / "file"
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    refused(run("report", tmp_path / "none", *out), "there is no such folder")
    refused(run("report", tmp_path / "empty", *out), "meg_config.json")
    refused(run("report", folder, "--out", tmp_path / "empty"), "--out", "folder")
    refused(run("report", folder, "--out", file / "report.html"), "--out", "cannot be written")
    refused(run("report", folder, "--out", folder / "report.html"), "--out", "outside the folder")
    refused(run("report", folder, *out, "--card", folder), "--card", "outside the folder")
    refused(run("report", folder, *out, "--card", out[1]), "two files")
    refused(run("report", folder, *out, "--device", "abacus"), "abacus")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}
    with pytest.raises(SystemExit) as stop:
        run("report", folder, "--edits", 0)
    assert stop.value.code == 2


def test_a_page_is_written_whole_or_not_at_all(
    run: Command,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "report.html"
    out.write_text("the former one")

    def failing(report: ModelReport) -> str:
        raise ValueError("no page today")

    monkeypatch.setattr(pages, "page", failing)
    arguments = ("--out", out, "--edits", 1, "--device", "cpu")
    refused(run("report", folder, *arguments), "no page today")
    assert out.read_text() == "the former one" and [*tmp_path.iterdir()] == [out]
