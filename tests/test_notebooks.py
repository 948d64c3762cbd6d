"""The notebooks run, and are stored as they ran: in order, with outputs and pictures, no error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

nbformat = pytest.importorskip("nbformat", reason="notebooks are run with nbclient")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run with nbclient")
pytest.importorskip("ipykernel", reason="notebooks are run with ipykernel")

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
_LIMIT = 240  # seconds of a cell


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(cell: Any) -> list[tuple[str, ...]]:
    """What a cell puts out, by kind; progress on standard error does not count."""
    kinds = [
        tuple(sorted(output.get("data", []))) or (output.get("name", output.output_type),)
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]
    return list(dict.fromkeys(kinds))


def pictures(notebook: Any) -> int:
    return sum("image/png" in kind for cell in code_cells(notebook) for kind in outputs(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    stored = [(cell.source, outputs(cell)) for cell in code_cells(notebook)]
    context = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=_LIMIT, resources=context).execute()
    ran = [(cell.source, outputs(cell)) for cell in code_cells(notebook)]
    assert ran == stored, "the stored outputs are of another run: execute and save the notebook"
    assert pictures(notebook) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    names = {output.get("name") for cell in cells for output in cell.outputs}
    assert "stderr" not in names, "leave progress and warnings out: remove these outputs"
    assert pictures(notebook) == 1
    text = path.read_text("utf-8")
    assert path.stat().st_size < 300_000
    assert not any(word in text for word in ("/work/", "/root/", "/home/", "/tmp/"))
