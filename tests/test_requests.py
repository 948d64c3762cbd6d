"""What is taken as an edit, what is refused, and whether the refusal says where."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from published import published

from meg_editor.edits.edit import Edit
from meg_editor.model.saved.schema import format_edits, parse_edits
from meg_editor.requests.files import read_requests
from meg_editor.requests.request import EditRequest, RequestError, merge_requests, only_edits

GOOD = {"prompt": "The capital of France is", "target_new": "Lyon"}


def refused(rows: list[Any], *words: str, places: list[str] | None = None) -> None:
    """`rows` are refused with every one of `words` in the message."""
    with pytest.raises(RequestError) as caught:
        merge_requests(rows, places)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------------- requests.py


@pytest.mark.parametrize("field", ["prompt", "target_new"])
@pytest.mark.parametrize("blank", ["", " ", "\t\n ", "\u00a0\u2003"])
def test_blank_text_is_refused(field: str, blank: str) -> None:
    refused([GOOD, {**GOOD, field: blank}], "request 1", f"'{field}' is empty")


@pytest.mark.parametrize("field", ["prompt", "target_new"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [(42, "int (42)"), (True, "bool"), (["Lyon"], "list"), ({"str": "Lyon"}, "dict")],
)
def test_values_that_are_not_text_are_refused(field: str, value: Any, kind: str) -> None:
    refused([GOOD, {**GOOD, field: value}], "request 1", repr(field), "must be text", kind)


@pytest.mark.parametrize("field", ["prompt", "target_new"])
def test_missing_fields_are_named_with_those_there_are(field: str) -> None:
    row = {key: value for key, value in GOOD.items() if key != field}
    refused(
        [{**row, "extra": "x"}], "request 0", f"{field!r} is missing", "'extra'", *map(repr, row)
    )


@pytest.mark.parametrize("field", ["prompt", "target_new"])
def test_null_is_called_null(field: str) -> None:
    with pytest.raises(RequestError, match=f"^request 1: field '{field}' is null: expected text$"):
        merge_requests([GOOD, {**GOOD, field: None}])


def test_a_subject_is_a_name() -> None:
    """10 MB of it came into force; prompt and target are limited by the model's context."""
    for length in (1001, 10_000_000):
        refused([GOOD, {**GOOD, "subject": "b" * length}], "request 1", f"got {length:,}; shorten")
    assert merge_requests([{**GOOD, "subject": "b" * 1000}]).duplicates == 0


@pytest.mark.parametrize("rows", [GOOD, EditRequest(**GOOD), "text", None, 7])
def test_what_is_no_list_is_refused_as_such(rows: Any) -> None:
    refused(rows, "expected a list of edits, got")


@pytest.mark.parametrize("field", ["subject", "rephrases", "locality_prompts"])
@pytest.mark.parametrize("value", [7, [1, 2], ["fine", None], [" "], {"a": 1}, [["nested"]]])
def test_optional_fields_are_checked_too(field: str, value: Any) -> None:
    refused([{**GOOD, field: value}], "request 0", repr(field))


@pytest.mark.parametrize("row", ["The capital of France is", 3, None, ["a", "b"]])
def test_rows_that_are_no_objects_are_refused(row: Any) -> None:
    refused([GOOD, row], "request 1", "expected an object")


def test_no_rows_are_refused() -> None:
    refused([], "no edit requests")


def test_a_whole_row() -> None:
    row = {
        "prompt": "  The mother tongue of {} is ",
        "subject": "Danielle Darrieux",
        "target_new": " English\n",
        "rephrases": ["Danielle Darrieux speaks", "What does she speak?"],
        "locality_prompts": ("The capital of Peru is",),
        "case_id": 7,
    }
    assert EditRequest.from_mapping(row) == EditRequest(
        prompt="The mother tongue of Danielle Darrieux is",
        target_new="English",
        subject="Danielle Darrieux",
        rephrases=("Danielle Darrieux speaks", "What does she speak?"),
        locality_prompts=("The capital of Peru is",),
    )


@pytest.mark.parametrize("absent", [{}, {"rephrases": None}, {"rephrases": ""}, {"rephrases": []}])
def test_optional_fields_may_be_left_out(absent: dict[str, Any]) -> None:
    request = EditRequest.from_mapping({**GOOD, **absent})
    assert request.rephrases == () and request.subject is None


def test_easyedits_spelling_of_rephrases() -> None:
    assert EditRequest.from_mapping({**GOOD, "rephrase_prompt": "France's is"}).rephrases == (
        "France's is",
    )


@pytest.mark.parametrize("empty", [None, "", []])
def test_an_empty_field_does_not_hide_the_other_spelling(empty: Any) -> None:
    row = {**GOOD, "rephrases": empty, "rephrase_prompt": "France's is"}
    assert EditRequest.from_mapping(row).rephrases == ("France's is",)


def test_requests_are_checked_like_mappings() -> None:
    refused([EditRequest(" ", "Lyon")], "request 0", "prompt")
    whole = EditRequest("Q?", "A", "S", ("R?",), ("L?",))
    assert merge_requests([whole]).requests == (whole,)


def test_duplicates_are_merged_and_counted() -> None:
    rows = [
        GOOD,
        {"prompt": "Who wrote Emma?", "target_new": "Poe"},
        {"prompt": " The  capital of\tFrance is", "target_new": "Lyon "},
        GOOD,
    ]
    merged = merge_requests(rows)
    assert [request.prompt for request in merged.requests] == [GOOD["prompt"], "Who wrote Emma?"]
    assert merged.duplicates == 2


def test_a_duplicate_keeps_what_only_it_has() -> None:
    rows = [
        {**GOOD, "rephrases": ["One?", "Two?"]},
        {**GOOD, "rephrases": ["Two?", "Three?"], "locality_prompts": ["Peru?"]},
        {**GOOD, "subject": "France", "locality_prompts": ["Peru?", "Chile?"]},
    ]
    merged = merge_requests(rows)
    texts = ("One?", "Two?", "Three?"), ("Peru?", "Chile?")
    assert merged.requests == (EditRequest(*GOOD.values(), "France", *texts),)
    assert merged.duplicates == 2


def test_a_method_sees_no_evaluation_texts() -> None:
    whole = EditRequest("Q?", "A", "S", ("R?",), ("L?",))
    assert only_edits([whole]) == only_edits([dataclasses.asdict(whole)])
    assert only_edits([whole]) == (EditRequest("Q?", "A", "S"),)


def test_prompts_which_differ_in_case_are_different() -> None:
    merged = merge_requests([GOOD, {**GOOD, "prompt": "the capital of france is"}])
    assert (len(merged.requests), merged.duplicates) == (2, 0)


def test_a_prompt_filled_from_its_subject_can_be_a_duplicate() -> None:
    filled = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon"}
    assert merge_requests([GOOD, filled]).duplicates == 1
    refused([GOOD, {**filled, "target_new": "Nice"}], "request 1", "request 0")


@pytest.mark.parametrize(
    ("prompt", "subject", "filled"),
    [
        ("In Python, {} is an empty", "Python", "In Python, {} is an empty"),
        ("In python, {} is an empty", "Python", "In python, {} is an empty"),
        ("Before it was filmed, {} was a novel", "It", "Before it was filmed, It was a novel"),
        ("The capital of {} is", "it", "The capital of it is"),  # a part of a word is no subject
        ("main(){} returns", "main(){}", "main(){} returns"),
    ],
)
def test_braces_beside_the_subject_are_the_prompts_own(
    prompt: str, subject: str, filled: str
) -> None:
    row = {"prompt": prompt, "subject": subject, "target_new": "dict"}
    assert EditRequest.from_mapping(row).prompt == filled


def test_one_prompt_with_two_targets_names_both_rows() -> None:
    rows = [{"prompt": "Q?", "target_new": "A"}, GOOD, {**GOOD, "target_new": "Nice"}]
    refused(rows, "request 2", "request 1", "'Nice'", "'Lyon'", GOOD["prompt"])
    refused(rows, "f.csv, line 9", "f.csv, line 4", places=[f"f.csv, line {i}" for i in (2, 4, 9)])


# ----------------------------------------------------------------------- request_files.py

RICH = {
    **GOOD,
    "subject": "France",
    "rephrases": ["France's capital is", "Which city is it?"],
    "locality_prompts": ["The capital of Peru is", "Two, plus two is"],
}
PLAIN = {"prompt": 'Who said "no"?', "target_new": "Žižek, 猫"}
EXPECTED = (
    EditRequest(
        GOOD["prompt"],
        "Lyon",
        "France",
        ("France's capital is", "Which city is it?"),
        ("The capital of Peru is", "Two, plus two is"),
    ),
    EditRequest('Who said "no"?', "Žižek, 猫"),
)
CSV = (
    "prompt,target_new,subject,rephrases,locality_prompts,case_id\n"
    "The capital of France is,Lyon,France,France's capital is| Which city is it?,"
    '"The capital of Peru is|Two, plus two is",1\n'
    '"Who said ""no""?","Žižek, 猫",,,,\n'
)
CONTENTS = {
    "list.json": json.dumps([RICH, PLAIN]),
    "edits.JSON": json.dumps({"edits": [RICH, PLAIN], "source": "me"}, indent=1),
    "rows.jsonl": "\n" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in (RICH, PLAIN)),
    "table.csv": CSV,
    "windows.csv": CSV.replace("\n", "\r\n") + "\r\n",
}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def file_refused(path: Path, *words: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_requests(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_format_gives_the_same_requests(tmp_path: Path, name: str, bom: bytes) -> None:
    path = write(tmp_path, name, bom + CONTENTS[name].encode())
    assert read_requests(path).requests == EXPECTED
    assert read_requests(str(path)).requests == EXPECTED


CODE = 'def f(a, b):\n    """Sum."""\n\n    if a:\n\t\treturn a  # "quoted", 1\r\n    return a + b'


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_line_breaks_and_indentation_of_texts_are_kept(tmp_path: Path, suffix: str) -> None:
    row = {"prompt": "Write f:\n\tin Python", "target_new": CODE, "subject": "f"}
    path = tmp_path / f"code{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            table = csv.DictWriter(file, row)
            table.writeheader()
            table.writerow(row)
        else:
            file.write(json.dumps([row] if suffix == ".json" else row))
    (read,) = read_requests(path).requests
    padded = {**row, "target_new": f"\n{CODE} "}
    assert read == EditRequest(**row) == EditRequest.from_mapping(padded)
    assert parse_edits(format_edits([Edit.of(read)]), 1) == [read]


def test_duplicates_in_files_are_counted(tmp_path: Path) -> None:
    assert read_requests(write(tmp_path, "f.json", json.dumps([GOOD, PLAIN, GOOD]))).duplicates == 1


def test_json_texts_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    path = write(tmp_path, "f.jsonl", '{"prompt": "a\u2028b\u0085c", "target_new": "d"}\n')
    assert read_requests(path).requests[0].prompt == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("spelling", "field"),
    [
        ("rephrase_prompt", "rephrases"),
        ("rephrase", "rephrases"),
        ("locality_prompt", "locality_prompts"),
    ],
)
def test_spellings_of_the_benchmark_files(tmp_path: Path, spelling: str, field: str) -> None:
    path = write(tmp_path, "f.json", json.dumps([{**GOOD, field: None, spelling: "One | two?"}]))
    assert getattr(read_requests(path).requests[0], field) == ("One | two?",)
    path = write(tmp_path, "f.csv", f"prompt,target_new,{spelling}\nQ?,A,One | two?\n")
    assert getattr(read_requests(path).requests[0], field) == ("One | two?",)


def test_the_fields_of_easyedits_files_are_no_misspellings(tmp_path: Path) -> None:
    extra = {"case_id": 1, "ground_truth": "Paris", "locality_ground_truth": "Lima", "cond": ">>"}
    extra |= {"portability": {}, "locality": {"Relation_Specificity": []}, "target_true": "Paris"}
    path = write(tmp_path, "f.json", json.dumps([{**GOOD, "subject": "France", **extra}]))
    assert read_requests(path).requests == (EditRequest(GOOD["prompt"], "Lyon", "France"),)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("promt", "prompt"),
        ("Prompt", "prompt"),
        ("target", "target_new"),
        ("Target New", "target_new"),
        ("subjects", "subject"),
        ("rephrasess", "rephrases"),
        ("rephrase_prompts", "rephrase_prompt"),
        ("localty_prompts", "locality_prompts"),
    ],
)
def test_near_misses_are_refused_with_the_nearest_name(
    tmp_path: Path, wrong: str, right: str
) -> None:
    row = {wrong: "Which?", **{key: value for key, value in GOOD.items() if key != right}}
    words = (repr(wrong), f"did you mean {right!r}")
    file_refused(write(tmp_path, "f.json", json.dumps([GOOD, row])), "f.json, entry 2", *words)
    line = json.dumps(row)
    file_refused(
        write(tmp_path, "f.jsonl", f"{json.dumps(GOOD)}\n{line}"), "f.jsonl, line 2", *words
    )
    table = f"{','.join(row)}\n{','.join(row.values())}\n"
    file_refused(write(tmp_path, "f.csv", table), "f.csv, line 1", *words)


def test_fields_of_other_data_sets_are_no_misspelt_ones(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "target_new": "Ada", "object": "Bea", "subject_id": 7, "locale": "en"}
    assert read_requests(write(tmp_path, "f.json", json.dumps([row]))).requests[0].subject is None


def test_locality_of_easyedits_files_is_read(tmp_path: Path) -> None:
    asked = {"neighborhood": {"prompt": ["Who wrote Ulysses?"], "ground_truth": ["Joyce"]}}
    (request,) = read_requests(
        write(tmp_path, "f.json", json.dumps([{**GOOD, "locality": asked}]))
    ).requests
    assert "Who wrote Ulysses?" in request.locality_prompts
    of_knowedit = {"Relation_Specificity": [{"prompt": "A"}, {"prompt": "B"}], "Forgetfulness": []}
    request = EditRequest.from_mapping({**GOOD, "locality": of_knowedit})
    assert request.locality_prompts == ("A", "B")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("f.json", json.dumps([GOOD, {"prompt": "Q?"}]), ["entry 2", "'target_new' is missing"]),
        ("f.json", json.dumps([GOOD, {**GOOD, "prompt": 5}]), ["entry 2", "'prompt' must be text"]),
        ("f.json", json.dumps([GOOD, "text"]), ["entry 2", "expected an object", "'text'"]),
        ("f.json", json.dumps([GOOD, None]), ["entry 2", "expected an object", "None"]),
        ("f.json", json.dumps(GOOD), ["expected a list", "edits"]),
        ("f.json", json.dumps({"edits": GOOD}), ["expected a list", "The capital of France"]),
        ("f.json", "3", ["expected a list", "3"]),
        ("f.json", "[]", ["no edits"]),
        ("f.json", '[{"prompt": "Q?",\n "target_new" "A"}]', ["line 2, column 15", "not JSON"]),
        ("f.json", '{"prompt": "Q?"}\n{"prompt": "R?"}', ["line 2, column 1", ".jsonl"]),
        ("f.jsonl", f"{json.dumps(GOOD)}\n\n{{'a': 1}}\n", ["line 3, column 2", "not JSON"]),
        ("f.jsonl", f"{json.dumps(GOOD)}\n[1]\n", ["line 2", "expected an object", "[1]"]),
        ("f.jsonl", '{"prompt": "Q?", "target_new": " "}', ["line 1", "'target_new' is empty"]),
        ("f.csv", "prompt,target_new\nQ?,A\n\nR?,\n", ["line 4", "'target_new' is empty"]),
        ("f.csv", 'prompt,target_new\n"Q\n?",A\n  ,B\n', ["line 4", "'prompt' is empty"]),
        ("f.csv", "prompt,target_new\nQ?,A\nOne, two?,A\n", ["line 3", "2 cells", "got 3"]),
        ("f.csv", "prompt,target_new\nQ?\n", ["line 2", "2 cells", "got 1"]),
        ("f.csv", "The capital of France is,Lyon\n", ["line 1", "'prompt', got 0"]),
        ("f.csv", "prompt,answer\nQ?,A\n", ["line 1", "'target_new', got 0"]),
        ("f.csv", "prompt;target_new\nQ?;A\n", ["line 1", "commas"]),
        ("f.csv", "prompt,target_new,prompt\nQ?,A,R?\n", ["line 1", "'prompt', got 2"]),
        ("f.csv", "prompt,target_new,note,note\nQ?,A,,\n", ["line 1", "'note', got 2"]),
        ("f.csv", "prompt,target_new\n", ["no edits"]),
        ("f.csv", 'prompt,target_new\nQ?,A\n"R?,B\nS?,C\n', ["line 3", "not CSV"]),
        ("f.csv", "prompt,target_new\nQ?,A\nQ?,B\n", ["f.csv, line 2", "f.csv, line 3"]),
        ("f.json", "", ["empty"]),
        ("f.jsonl", " \n\n", ["empty"]),
        ("f.csv", b"\xef\xbb\xbf", ["empty"]),
        ("f.txt", json.dumps([GOOD]), [".txt", ".json, .jsonl, .csv"]),
        ("edits", json.dumps([GOOD]), [".json, .jsonl, .csv"]),
        ("f.csv", "prompt,target_new\nQ?,A\nR?,né\n".encode("latin-1"), ["line 3", "0xe9"]),
        ("f.json", b"\xef\xbb\xbf" + '\n["é"]'.encode("latin-1"), ["line 2", "0xe9", "UTF-8"]),
        ("f.json", json.dumps([GOOD]).encode("utf-16"), ["line 1", "0xff", "UTF-8"]),
    ],
)
def test_refusals_name_file_line_and_field(
    tmp_path: Path, name: str, text: str | bytes, words: list[str]
) -> None:
    file_refused(write(tmp_path, name, text), *words)


def test_trailing_empty_columns_of_spreadsheets_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "f.csv", "prompt, target_new,,\nQ?,A,,\n")
    assert read_requests(path).requests == (EditRequest("Q?", "A"),)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_requests(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.json"):
        read_requests(tmp_path / "folder.json")


@pytest.mark.parametrize("name", ["counterfact_easyedit.json", "knowedit_zsre_test.json"])
def test_published_files_are_read(name: str) -> None:
    try:
        merged = read_requests(published(name))
    except RequestError as error:  # published data holds contradictions; nothing else is wrong
        assert "different answers to the same prompt" in str(error)
    else:
        assert len(merged.requests) > 500 and merged.requests[0].rephrases
        if "knowedit" in name:
            assert all(request.locality_prompts for request in merged.requests[:20])
