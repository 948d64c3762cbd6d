"""General ability before and after editing: lm-evaluation-harness on tasks which need no hub.

    python examples/general_ability.py --settings-from examples/results/reference/world/report.json
    python examples/general_ability.py --model smollm2 --data counterfact --path counterfact.json \\
        --settings-from report.json --methods meg,ft,locft,memit --edits 64

The paper's table 3, on five tasks made here: sums, agreement of verbs, days and numbers in order,
opposites, capitals. --edits facts are edited by each method; the most probable of four (or two)
endings is an answer. Printed: right answers in percent for each task, `edits`, the share of edits
which are answered with their target, and `changed`, the share of endings whose log-likelihood is
another one than the unedited model's. Questions which name the subject of an edit are left out, so
that should be 0.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel
from what_methods_do import (
    cases_of,
    markdown,
    methods_of,
    read_options,
    right_answers,
    write_rows,
)

from meg_editor import load_model
from meg_editor.benchmark.methods import edited
from meg_editor.evaluation.metrics import percent
from meg_editor.integrations.lm_eval import MeGLM
from meg_editor.model.meg_model import MeGModel

CAPITALS = """Austria Vienna, Canada Ottawa, Chile Santiago, China Beijing, Cuba Havana, Denmark
    Copenhagen, Egypt Cairo, Finland Helsinki, France Paris, Germany Berlin, Greece Athens, Hungary
    Budapest, Iran Tehran, Iraq Baghdad, Ireland Dublin, Italy Rome, Japan Tokyo, Kenya Nairobi,
    Norway Oslo, Peru Lima, Poland Warsaw, Portugal Lisbon, Russia Moscow, Spain Madrid, Sweden
    Stockholm, Switzerland Bern, Syria Damascus, Turkey Ankara, Ukraine Kyiv, Vietnam Hanoi"""
OPPOSITES = """hot cold, big small, old new, fast slow, high low, early late, hard soft, dark
    bright, rich poor, happy sad, strong weak, open closed, full empty, dry wet, clean dirty, deep
    shallow, loud quiet, near far, thick thin, wide narrow, heavy light, long short, left right,
    black white, good bad, first last, inside outside, day night, love hate"""
THINGS = "key cabinet, dog house, book shelf, letter drawer, picture wall, child garden, car street"
ORDERS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
)
Question = tuple[str, str, Sequence[str]]  # its text, the right ending, and others


def words(text: str) -> list[list[str]]:
    """The words between commas."""
    return [part.split() for part in text.split(",")]


def sums() -> Iterator[Question]:
    """7 + 5 = 12."""
    for a in range(2, 10):
        for b in range(2, 10):
            others = [a + b + step for step in (-2, -1, 1, 2, 10)]
            yield f"3 + 4 = 7\n6 + 8 = 14\n{a} + {b} =", f"{a + b}", [str(n) for n in others]


def agreement() -> Iterator[Question]:
    """The keys to the cabinet are, not is."""
    for noun, place in words(THINGS):
        for number in (noun, "children" if noun == "child" else f"{noun}s"):
            for where in (place, f"{place}s"):
                verbs = ("is", "are") if number == noun else ("are", "is")
                yield f"The {number} near the {where}", verbs[0], verbs[1:]


def orders() -> Iterator[Question]:
    """Monday, Tuesday, Wednesday."""
    for order in ORDERS:
        parts = order.split()
        for first in range(len(parts) - 2):
            a, b, right = parts[first : first + 3]
            yield f"{a}, {b},", right, [part for part in parts if part not in (a, b, right)]


def opposites() -> Iterator[Question]:
    """The opposite of hot is cold."""
    pairs = words(OPPOSITES)
    for word, right in pairs:
        others = [other for _, other in pairs if other != right]
        yield (
            f'The opposite of "up" is "down". The opposite of "{word}" is',
            f'"{right}"',
            [f'"{other}"' for other in others],
        )


def capitals() -> Iterator[Question]:
    """The capital of France is Paris."""
    pairs = words(CAPITALS)
    for country, right in pairs:
        yield f"The capital of {country} is", right, [city for _, city in pairs if city != right]


TASKS = (sums, agreement, orders, opposites, capitals)


def write_tasks(folder: Path, subjects: Sequence[str]) -> list[str]:
    """The harness's files of all tasks, without the questions about `subjects`; their names."""
    for task in TASKS:
        name, rng, docs = task.__name__, random.Random(0), []
        for text, right, others in task():
            if any(subject in text for subject in subjects):
                continue
            choices = [right, *rng.sample(list(others), min(3, len(others)))]
            rng.shuffle(choices)
            docs.append({"question": text, "choices": choices, "gold": choices.index(right)})
        lines = "\n".join(map(json.dumps, docs))
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
        files = {"test": str(folder / f"{name}.jsonl")}
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return [task.__name__ for task in TASKS]


class Harness:
    """Runs the tasks.

    Args:
        folder: for the files of the tasks.
        subjects: of the edits.
    """

    def __init__(self, folder: Path, subjects: Sequence[str], tokenizer: Any) -> None:
        self.tasks = write_tasks(folder, subjects)
        self.manager = TaskManager(include_path=str(folder), include_defaults=False)
        self.tokenizer = tokenizer

    def measure(self, model: Any) -> tuple[dict[str, float], list[float]]:
        """Right answers by task in percent, and the log-likelihoods of all endings."""
        if isinstance(model, MeGModel):
            asked: Any = MeGLM(model, batch_size=32)
        else:
            asked = HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=32)
        found: Any = lm_eval.simple_evaluate(
            model=asked, tasks=self.tasks, task_manager=self.manager, bootstrap_iters=0
        )
        right = {name: 100 * found["results"][name]["acc,none"] for name in self.tasks}
        samples = [sample for name in self.tasks for sample in found["samples"][name]]
        endings = [ending[0] for sample in samples for ending in sample["resps"]]
        return right, [float(value) for value, _ in endings]


def main() -> None:
    """Run and print."""
    options, hparams = read_options("general_ability", __doc__)
    model, tokenizer = load_model(hparams)
    cases, facts = cases_of(options, model, tokenizer, options.edits)
    requests = [case.request for case in cases]
    with tempfile.TemporaryDirectory() as folder:
        subjects = [e.subject for e in requests if e.subject]
        harness = Harness(Path(folder), subjects, tokenizer)
        right, before = harness.measure(model)
        rows: dict[str, dict[str, Any]] = {"unedited": {"edits": 0.0, **right, "changed": 0.0}}
        for method in methods_of(options, hparams):
            with edited(method, model, tokenizer, cases, **vars(facts), seed=0) as result:
                if not isinstance(result, MeGModel | PreTrainedModel):
                    print(f"left out: {method.name} would route by the endings too", flush=True)
                    continue
                edits = [(case, case.request.prompt) for case in cases]
                answered = right_answers(result, tokenizer, edits)
                right, after = harness.measure(result)
            other = [a != b for a, b in zip(before, after, strict=True)]
            rows[method.name] = {"edits": answered, **right, "changed": percent(other)}
            print(method.name, rows[method.name], flush=True)
            write_rows("general_ability", options, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
