"""Several processes fit one model: real ones, which talk through gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from meg_editor.runtime.processes import Processes

PROGRAM = """
import sys
import torch
from safetensors.torch import save_file
from meg_editor.generators import GENERATORS, trainer
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.runtime.processes import Processes

torch.set_num_threads(1)
processes = Processes.launched("cpu")
assert processes.count == 2, processes.count
rank = processes.rank
assert processes.once(lambda: rank) == 0
assert processes.each(lambda: [rank, 10 * rank]) == [0, 0, 1, 10]
for way in (
    lambda: processes.once(lambda: 1 / 0),
    lambda: processes.each(lambda: [1 / rank]),  # an error of one of them only
):
    try:
        way()
    except ZeroDivisionError:
        continue
    raise SystemExit("the other one's error was not raised here")
parts = [torch.full((2, 3), 1.0 + rank), torch.tensor(float(rank))]
processes.sum_(parts)
assert parts[0].tolist() == [[3.0] * 3] * 2 and float(parts[1]) == 1.0

hparams = MeGHyperParams(
    generator_width=16, generator_depth=1, generator_patch_size=5,
    generator_steps=30, generator_epochs=1, generator_zero_augmentation=0.3,
)
trainer._TOLERANCE, trainer._BATCH = 0.0, 7
chance = torch.Generator().manual_seed(0)
z, w, other = (torch.randn(n, d, generator=chance) for n, d in ((9, 8), (9, 21), (4, 8)))
generator = GENERATORS[sys.argv[2]].build(hparams, 8, 21, 9)
losses = generator.fit(z, w, other, 5, processes)
state = {**generator.state_dict(), "losses": torch.tensor(losses)}
save_file(state, f"{sys.argv[1]}/{rank}.safetensors")
"""


def launched(program: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(program), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_two_processes_train_what_one_trains(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, "utf-8")
    launched(program, tmp_path, kind)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = _alone(kind)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=2e-3, rtol=2e-3, msg=name)


def _alone(kind: str) -> dict[str, Tensor]:
    start, stop = PROGRAM.index("hparams = "), PROGRAM.index("save_file(state")
    names: dict[str, object] = {"sys": type("sys", (), {"argv": ["", "", kind]})}
    imports = [line for line in PROGRAM.splitlines() if line.startswith(("from", "import torch"))]
    exec("\n".join(imports), names)
    names["processes"] = Processes()
    exec(PROGRAM[start:stop], names)
    state = names["state"]
    assert isinstance(state, dict)
    return state


def test_one_process_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = Processes.launched()
    assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
    assert processes.once(lambda: 3) == 3 and processes.each(lambda: [1, 2]) == [1, 2]
    tensor = torch.ones(2)
    processes.sum_([tensor])
    assert tensor.tolist() == [1, 1]


def test_nobody_gives_up_while_one_calibrates(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's default is 10 minutes, after which the waiting processes would end the work."""
    options: dict[str, Any] = {}

    class State:
        process_index, num_processes = 1, 2

        def __init__(self, **given: Any) -> None:
            options.update(given)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("meg_editor.runtime.processes.PartialState", State)
    assert Processes.launched("cpu").rank == 1
    assert options["timeout"] >= timedelta(days=1)
