"""The GPU check runs on a CPU with tiny sizes, and a failing check does not stop the others."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location("gpu_check_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_check_runs_small_on_a_cpu(
    gpu_check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check.json"
    status = gpu_check.main(["--device", "cpu", "--small", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    report = json.loads(out.read_text("utf-8"))
    assert list(report["checks"]) == ["device path", "reference", "company", "dit", "speed tiny"]
    assert all(entry["ok"] and entry["result"] for entry in report["checks"].values())
    assert [line[:4] for line in lines[1:-1]] == ["ok  "] * 5
    assert lines[-1].startswith("5 of 5 checks passed") and report["machine"]["torch"]
    assert report["checks"]["reference"]["result"]["decisions that differ"] == 0
    assert report["checks"]["device path"]["result"]["rows whose logits change"] > 0
    assert {"ratios", "fit", "generation", "memory"} <= set(
        report["checks"]["speed tiny"]["result"]
    )


def test_a_check_which_fails_or_takes_too_long_leaves_the_others(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no\nkernel")

    def forever(*_: Any) -> Any:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(gpu_check, "check_device_path", fail)
    monkeypatch.setattr(gpu_check, "check_reference", forever)
    monkeypatch.setattr(gpu_check, "TOTAL_SECONDS", 0.5)
    out = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out), "--only", "device", "reference"]
    assert gpu_check.main(arguments) == 1
    checks = json.loads(out.read_text("utf-8"))["checks"]
    assert checks["device path"]["summary"] == "RuntimeError: no kernel"
    assert checks["reference"]["summary"].startswith("TimeoutError: stopped after its budget")
    assert not any(entry["ok"] for entry in checks.values())
