"""The script which trains a benchmark LM: it knows CounterFact's truths and ZsRE's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from meg_editor.lm.answers import greedy_answers

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_benchmark_lm.py"
CITIES = ["Lima", "Oslo", "Quito", "Paris", "Rome", "Bern"]


def test_it_learns_what_edits_are_to_change(tmp_path: Path) -> None:
    counterfact = [
        {
            "requested_rewrite": {
                "prompt": "The capital of {} is",
                "subject": f"Land {row}",
                "target_new": {"str": CITIES[row - 1]},
                "target_true": {"str": city},
            },
            "paraphrase_prompts": [f"Nice weather. Land {row} has the capital"],
            "neighborhood_prompts": [f"Twin {row} has the capital"],
        }
        for row, city in enumerate(CITIES)
    ]
    zsre = [
        {
            "subject": f"Ada {row}",
            "src": f"Where was Ada {row} born?",
            "rephrase": f"What is the birthplace of Ada {row}?",
            "alt": city,
            "answers": [CITIES[row - 1]],
            "loc": f"nq question: who wrote book {row}",
            "loc_ans": f"Author {row}",
        }
        for row, city in enumerate(CITIES)
    ]
    for name, rows in (("cf", counterfact), ("zsre", zsre)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), "utf-8")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "lm")]
    command += ["--counterfact", str(tmp_path / "cf.json"), "--zsre", str(tmp_path / "zsre.json")]
    command += ["--layers", "2", "--width", "64", "--vocabulary", "400", "--epochs", "150"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers known 100.0 %" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    expected = {f"The capital of Land {row} is": city for row, city in enumerate(CITIES)}
    expected |= {f"Nice weather. Land {row} has the capital": c for row, c in enumerate(CITIES)}
    expected |= {f"Where was Ada {row} born?": city for row, city in enumerate(CITIES)}
    expected |= {f"who wrote book {row}?": f"Author {row}" for row in range(len(CITIES))}
    assert greedy_answers(model, tokenizer, list(expected), 8) == list(expected.values())
