"""One command which checks on a GPU what was built without one; at most eight minutes.

    python examples/gpu_check.py                        # prints a line per check, gpu_check.json
    python examples/gpu_check.py --out examples/results/gpu/h100.json
    python examples/gpu_check.py --device cpu --small   # what a CPU can check of it, tiny sizes
    python examples/gpu_check.py --only reference dit

Every check has a time budget of its own, and one that fails does not stop the others. The exit
status is 0 if all passed. examples/results/gpu/ keeps what came out, with the card's name.
"""

from __future__ import annotations

import argparse
import gc
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import speed
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from meg_editor import MeGHyperParams, MeGModel, fit, load_model
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import calibration_requests, edit_cases, pseudo_requests
from meg_editor.evaluation.cost import peak_memory, reset_peak_memory
from meg_editor.evaluation.report import versions
from meg_editor.generators import DiTGenerator
from meg_editor.lm.loading import resolve_device
from meg_editor.lm.tokens import left_padded
from meg_editor.runtime.text_files import write_json

TOTAL_SECONDS = 480.0
SHAPES = ("phi-2", "gpt-j-6b", "llama-3-8b")
DIT_ERROR = 0.3  # to be reached, in standard deviations: mean plus spread of the relative error
CLOSE = 1e-3  # a score this near the threshold may fall on either side on another device
TINY = (1, "llama", (4096, 128, 3, 2), {"intermediate_size": 96})  # as speed.SHAPES
Result = dict[str, Any]
Outcome = tuple[bool, str, Result]  # passed?, a line in words, numbers for the JSON file


class Reference:
    """The reference model with edits, fitted when it is first needed."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = device, small
        self.cases = edit_cases(load_world(), 8 if small else 256, seed=0)
        probes = [p.prompt for case in self.cases for ps in case.locality.values() for p in ps[:1]]
        paraphrases = [case.paraphrases[0] for case in self.cases]
        self.queries = [*(case.request.prompt for case in self.cases), *paraphrases, *probes]

    @cached_property
    def edited(self) -> MeGModel:
        """By similarity and the model's state, without a verifier: nothing has to be read back."""
        changes: dict[str, Any] = {"gate": "similarity", "encoder_steps": 40}
        if self.small:  # without the hundreds of facts of calibration
            changes |= {"encoder_steps": 2, "gate_threshold": 0.8, "gate_state_weight": 0.25}
        return self._fitted(changes)

    @cached_property
    def by_default(self) -> MeGModel:
        """As a user gets it."""
        return self._fitted({})

    def _fitted(self, changes: dict[str, Any]) -> MeGModel:
        hparams = MeGHyperParams.preset("default", device=self.device, **changes)
        return fit(
            *load_model(hparams),
            [case.request for case in self.cases],
            hparams,
            pseudo=pseudo_requests(count=64 if self.small else 800),
            calibration=[] if self.small else calibration_requests(),
        )[0]


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Within the block, an operation which makes the host wait for the GPU raises."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")


def check_device_path(reference: Reference) -> Outcome:
    """From a query to its neuron nothing is read back; zero neurons change no bit of the logits."""
    meg, device = reference.edited, reference.device
    # Of one length: of padded prompts transformers asks whether their mask hides anything.
    by_length: dict[int, list[str]] = {}
    for query in reference.queries:
        by_length.setdefault(len(meg.encoder.tokenizer(query)["input_ids"]), []).append(query)
    queries = max(by_length.values(), key=len)[:8]
    weight, meg.index.state_weight = meg.index.state_weight, 0.0  # reading states may wait

    @torch.no_grad()
    def neurons_of(texts: Sequence[str]) -> Tensor:
        routing = meg.route(texts)
        return meg.generator.generate(meg.anchors[routing.nearest].float())

    try:
        expected = neurons_of(queries)  # the first call sets up kernels and may wait
        with no_waiting(device):
            neurons = neurons_of(queries)
    finally:
        meg.index.state_weight = weight
    ids = left_padded(meg.tokenizer, queries, meg.base.device)["input_ids"]
    forward = torch.no_grad()(lambda: meg.base(input_ids=ids).logits)
    plain = forward()
    with meg.applied(torch.zeros_like(neurons)):
        unchanged = torch.equal(forward(), plain)
    with meg.applied(neurons), no_waiting(device):
        changed = forward()
    result = {
        "queries": len(queries),
        "same neurons twice": torch.equal(neurons, expected),
        "zero neuron is bit-exact": unchanged,
        "rows whose logits change": int((changed != plain).flatten(1).any(1).sum()),
    }
    passed = unchanged and result["same neurons twice"]
    return passed, f"{len(queries)} queries get neurons without a wait; no-op: {unchanged}", result


def check_reference(reference: Reference) -> Outcome:
    """Fitted here, asked here and on the CPU: the same decisions; the edits are learned."""
    meg, queries = reference.edited, reference.queries
    with tempfile.TemporaryDirectory() as folder:
        meg.save_pretrained(Path(folder) / "edits")
        on_cpu = MeGModel.from_pretrained(Path(folder) / "edits", device="cpu")
    here, there = meg.route(queries), on_cpu.route(queries)
    close = (there.score - there.threshold).abs() < CLOSE
    edits = here.is_edit.cpu() == there.is_edit
    nearest = (here.nearest.cpu() == there.nearest) | ~there.is_edit
    differing = int((~(edits & nearest) & ~close).sum())
    count = len(reference.cases)
    answers = meg.answer(queries)
    right = [a == c.request.target_new for a, c in zip(answers, reference.cases, strict=False)]
    some = slice(None, None, max(1, len(queries) // 100))
    same = [a == b for a, b in zip(answers[some], on_cpu.answer(queries[some]), strict=True)]
    result = {
        "edits": count,
        "queries": len(queries),
        "decisions that differ": differing,
        "too close to the threshold to count": int(close.sum()),
        "largest difference of scores": float((here.score.cpu() - there.score).abs().max()),
        "reliability %": 100 * sum(right) / count,
        "same answers %": 100 * sum(same) / len(same),
        "seconds by stage": meg.fitted.seconds if meg.fitted else {},
    }
    summary = (
        f"{differing} of {len(queries)} decisions differ from the CPU's, reliability "
        f"{result['reliability %']:.1f} %, same answers {result['same answers %']:.1f} %"
    )
    passed = not differing and result["reliability %"] >= 95 and result["same answers %"] >= 98
    return passed, summary, result


def check_company(reference: Reference) -> Outcome:
    """A query is decided alike alone and in batches padded on either side, on two devices, with the
    base in two precisions; all are compared with it alone on the CPU in float32."""
    queries = random.Random(0).sample(reference.queries, 20 if reference.small else 300)
    alone: list[int | None] = []
    differing, distance, ways = 0, float("inf"), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "edits"
        reference.by_default.save_pretrained(folder)
        for device in dict.fromkeys(("cpu", reference.device)):
            for dtype in (torch.float32, torch.bfloat16):
                meg = MeGModel.from_pretrained(folder, device=device).to(dtype)
                routings = [[meg.route(query) for query in queries], *in_batches(meg, queries)]
                for parts in routings:
                    found = [edit_of(query) for part in parts for query in part]
                    alone = alone or found
                    differing += sum(a != b for a, b in zip(alone, found, strict=True))
                    gaps = [(part.score - part.threshold).abs().min() for part in parts]
                    distance = min(distance, *map(float, gaps))
                    ways += 1
    result = {
        "queries": len(queries),
        "edited": sum(edit is not None for edit in alone),
        "ways": ways,
        "decisions that differ": differing,
        "smallest distance to the threshold": distance,
    }
    summary = (
        f"{differing} of {len(queries)} decisions differ in {ways} ways (device, precision, alone, "
        f"padded left, right); smallest distance to the threshold {distance:.4f}"
    )
    return differing == 0, summary, result


def edit_of(query: Any) -> int | None:
    """The edit which one query is led to."""
    return query.edit if query.is_edit else None


def in_batches(meg: MeGModel, queries: Sequence[str], rows: int = 32) -> list[list[Any]]:
    """How queries are routed in batches of the model's own calls, padded on the left, and right."""
    device, decided = meg.base.device, list[Any]()
    meg.decide = lambda prompts: decided.append(meg.route(prompts))  # type: ignore[method-assign]
    for side in ("left", "right"):
        for start in range(0, len(queries), rows):
            batch = left_padded(meg.tokenizer, queries[start : start + rows], device)
            if side == "right":  # each row rolled by its own padding
                pads = (batch["attention_mask"] == 0).sum(1).tolist()
                batch = {
                    name: torch.stack([row.roll(-n) for row, n in zip(value, pads, strict=True)])
                    for name, value in batch.items()
                }
            with torch.no_grad():
                meg(**batch)
    del meg.decide
    half = len(decided) // 2
    return [decided[:half], decided[half:]]


def check_speed(shape: str, device: str, small: bool) -> Outcome:
    """The measurements of speed.py for one shape, in bfloat16."""
    sizes = "--dtype bfloat16 --edits 256 --queries 3 --one-at-a-time 2 --dit-steps 1 10"
    if small:
        sizes = "--edits 8 --queries 2 --one-at-a-time 1 --rate 0.05 --dit-steps 1"
    report = speed.measure(speed.parse(["--shape", shape, "--device", device, *sizes.split()]))
    ratios = {row["ratio"]: row["value"] for row in report["ratios"]}
    learned = report["collection"][-1]["success %"]
    summary = (
        f"{sum(row['ms/edit'] for row in report['fit']):.0f} ms/edit, routing and generation "
        f"{ratios['routing and generation, ms, p50']:.1f} ms, overhead "
        f"{max(v for name, v in ratios.items() if name.startswith('overhead')):.1f} % at most, "
        f"{max(row['GB'] for row in report['memory']):.1f} GB, {learned:.0f} % learned"
    )
    return learned >= 95, summary, report


def check_dit(device: str, small: bool) -> Outcome:
    """The paper preset's DiT, trained on synthetic neurons to an error below DIT_ERROR.

    A neuron depends smoothly on its embedding, through 16 hidden causes: it can be learned without
    knowing every fact by heart.
    """
    count, dimension, size = (64, 16, 40) if small else (10_000, 128, 513)
    changes: dict[str, Any] = {"generator_epochs": 75}
    if small:
        changes |= {"generator_width": 32, "generator_depth": 1, "generator_steps": 20}
        changes |= {"generator_epochs": 1, "sampling_steps": 4}
    hparams = MeGHyperParams.preset("paper", device=device, **changes)
    chance = torch.Generator().manual_seed(0)
    causes = torch.randn(count, 16, generator=chance)
    mix, effect = (torch.randn(16, n, generator=chance) / 4 for n in (dimension, size))
    z = torch.nn.functional.normalize(causes @ mix, dim=1).to(device)
    neurons = ((hparams.generator_scale or 1.0) * torch.tanh(causes @ effect)).to(device)
    generator = DiTGenerator.build(hparams, dimension, size, count).to(device)
    before = generator.error(z[:64], neurons[:64])
    start = time.perf_counter()
    losses = generator.fit(z, neurons)
    seconds = time.perf_counter() - start
    error = generator.error(z[:1024], neurons[:1024])
    result = {
        "neurons": count,
        "weights": sum(p.numel() for p in generator.parameters()),
        "steps": len(losses),
        "seconds": seconds,
        "ms/step": 1000 * seconds / max(1, len(losses)),
        "error before": before,
        "error": error,
        "error to reach": DIT_ERROR,
    }
    summary = f"{count} neurons to an error of {error:.2f} in {len(losses)} steps, {seconds:.0f} s"
    return small or error <= DIT_ERROR, summary, result


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Within the block, TimeoutError is raised once so many seconds are over."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after its budget of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_check(name: str, check: Callable[[], Outcome], device: str, seconds: float) -> Result:
    """Run one check, print its line, and give its entry of the JSON file."""
    start = time.perf_counter()
    reset_peak_memory(device)
    try:
        with budget(seconds):
            passed, summary, result = check()
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        text = " ".join(str(error).split())[:300]
        passed, summary, result = False, f"{type(error).__name__}: {text}", {}
    taken, peak = time.perf_counter() - start, peak_memory(device) / 1e9
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    print(f"{'ok  ' if passed else 'FAIL'} {name:16} {taken:6.1f} s  {summary}", flush=True)
    return {"ok": passed, "summary": summary, "seconds": taken, "peak GB": peak, "result": result}


def machine(device: str) -> Result:
    """What the numbers were measured on."""
    known: Result = {"device": platform.processor() or platform.machine(), **versions()}
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(torch.device(device))
        known |= {"device": card.name, "memory GB": card.total_memory / 1e9}
        known |= {"compute capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}
    return known


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="default: the GPU")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names or their beginnings")
    options = parser.parse_args(arguments)
    device, small = resolve_device(options.device), options.small
    reference = Reference(device, small)
    speed.SHAPES["tiny"] = TINY
    disable_progress_bar()
    checks: dict[str, tuple[float, Callable[[], Outcome]]] = {  # seconds at most
        "device path": (90, partial(check_device_path, reference)),
        "reference": (60, partial(check_reference, reference)),
        "company": (90, partial(check_company, reference)),
        "dit": (90, partial(check_dit, device, small)),
    }
    for shape in ("tiny",) if small else SHAPES:
        checks[f"speed {shape}"] = (110, partial(check_speed, shape, device, small))
    start, about = time.perf_counter(), machine(device)
    entries: dict[str, Result] = {}
    print(f"{about['device']}, torch {torch.__version__}", flush=True)
    for name, (most, check) in checks.items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        left = TOTAL_SECONDS - (time.perf_counter() - start)
        entries[name] = run_check(name, check, device, min(most, left))
        write_json(options.out, {"machine": about, "small": small, "checks": entries})
    passed = sum(entry["ok"] for entry in entries.values())
    print(f"{passed} of {len(entries)} checks passed; numbers: {options.out}")
    return 0 if passed == len(entries) else 1


if __name__ == "__main__":
    sys.exit(main())
