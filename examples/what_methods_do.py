"""What each method does beside answering its edits: one table, filled by running every method.

    python examples/what_methods_do.py --settings-from examples/results/reference/world/report.json
    python examples/what_methods_do.py --model smollm2 --data counterfact --path counterfact.json \
        --settings-from report.json --methods meg,ft,memit

It edits --edits facts and asks for them bare and behind an instruction, in a chat where the model
has a template; asks what must keep its answer; asks from four threads; adds as many facts
afterwards; takes one back; and edits a mixture of experts and a base in nf4. Settings of baselines
are those of the report, which `meg-editor benchmark` writes. Cells:

- edits, instruction, chat, paraphrases: right answers in percent (the target as whole words)
- negated, translated, subject, neighbours: answers of 12 tokens which stay as they were, in percent
- base: whether the base model's own weights stay as they are, bit for bit
- threads: answers which differ from those of one thread, of all that were asked
- later, old: right answers in percent to edits which were added later, and to the first ones then
- undone: whether one edit can be taken back with no other answer changed
- MoE, nf4: facts learned of 4 by a tiny random mixture of experts, and on this model in nf4
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.accumulation import extend, has_memory
from meg_editor.baselines.core.settings import LayerHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark.definition import FittingFacts
from meg_editor.benchmark.method_spec import MethodSpec
from meg_editor.benchmark.methods import Method, applied
from meg_editor.benchmark.pool import only_wrong
from meg_editor.benchmark.search import best_of, recorded
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.splits import choose, split_cases
from meg_editor.data.trap_questions import negated
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases, reference_split
from meg_editor.evaluation.cost import stored_bytes
from meg_editor.evaluation.metrics import mentions, percent
from meg_editor.evaluation.report import machine, versions
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.chat import in_chat
from meg_editor.lm.neuron import count_layers
from meg_editor.runtime.text_files import write_json

TOKENS, THREADS, FEW = 12, 4, 4
INSTRUCTION = " Answer in one word."


class Probes:
    """Asks edited models the same questions about the same facts.

    Args:
        cases: the facts which are edited first.
        later: those which are added afterwards.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        cases: Sequence[EvaluationCase],
        later: Sequence[EvaluationCase],
        options: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.cases, self.later, self.options = cases, later, options
        self.before = {name: self.answers(model, texts) for name, texts in self.kept().items()}

    def answers(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """Greedy answers of 12 tokens."""
        return batched_answers(model, self.tokenizer, list(prompts), TOKENS)

    def kept(self) -> dict[str, list[str]]:
        """Prompts which must be answered as before."""
        every = [case.request for case in self.cases]
        neighbours = [
            probe.prompt
            for case in self.cases
            for probes in list(case.locality.values())[:1]
            for probe in probes[:2]
        ]
        return {
            "negated": [text for e in every if (text := negated(e.prompt, e.subject))],
            "translated": [f'Translate to German: "{edit.prompt}"' for edit in every],
            "subject": [f"Spell the name {edit.subject}:" for edit in every],
            "neighbours": neighbours,
        }

    def right(
        self, model: Any, cases: Sequence[EvaluationCase], form: Callable[[str], str] = str
    ) -> float:
        """Edits which are answered with their target, in percent."""
        asked = [(case, form(case.request.prompt)) for case in cases]
        return right_answers(model, self.tokenizer, asked)

    def row(self, method: Method) -> dict[str, Any]:
        """All columns of a method; the model is as before afterwards."""
        snapshot = WeightSnapshot(self.model)
        try:
            result = self._apply(method, self.model, self.cases)
            row: dict[str, Any] = {"edits": self.right(result, self.cases)}
            row["instruction"] = self.right(result, self.cases, lambda p: p + INSTRUCTION)
            if getattr(self.tokenizer, "chat_template", None):
                row["chat"] = self.right(
                    result, self.cases, lambda p: in_chat(self.tokenizer, ("user", p))
                )
            others = [(case, text) for case in self.cases for text in case.paraphrases]
            row["paraphrases"] = right_answers(result, self.tokenizer, others)
            for name, prompts in self.kept().items():
                answers = self.answers(result, prompts)
                same = [a == b for a, b in zip(answers, self.before[name], strict=True)]
                row[name] = percent(same)
            row["base"] = "written" if snapshot.changed() else "untouched"
            row["threads"] = self._threads(result)
            row["KB per edit"] = stored_bytes(result, self.model) / len(self.cases) / 1000
            row["undone"] = self._undone(result)
            row |= self._later(method, result)
            return row
        finally:
            snapshot.restore()

    def _apply(self, method: Method, model: Any, cases: Sequence[EvaluationCase]) -> Any:
        return applied(method, model, self.tokenizer, cases, **self.options)[0]

    def _threads(self, model: Any) -> str:
        prompts = [case.request.prompt for case in self.cases] + self.kept()["neighbours"]

        def ask(prompt: str) -> str:
            with torch.no_grad():  # set per thread
                return self.answers(model, [prompt])[0]

        alone = [ask(prompt) for prompt in prompts]
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(ask, prompts))
        return f"{sum(a != b for a, b in zip(alone, together, strict=True))} of {len(prompts)}"

    def _undone(self, model: Any) -> str:
        """Take the first edit back, look, and bring it in again."""
        if not hasattr(model, "remove"):
            return "all or none"
        prompts = [case.request.prompt for case in self.cases]
        with_all = self.answers(model, prompts)
        model.remove(prompts[0])
        without = self.answers(model, prompts)
        model.undo()
        again = self.answers(model, prompts) == with_all
        gone = without[0] == self.answers(self.model, prompts[:1])[0]
        return "yes" if gone and without[1:] == with_all[1:] and again else "others change"

    def _later(self, method: Method, model: Any) -> dict[str, Any]:
        try:
            if has_memory(model):
                extend(model, self._apply(method, self.model, self.later))
                both = model
            else:
                both = self._apply(method, model, self.later)
            return {"later": self.right(both, self.later), "old": self.right(both, self.cases)}
        except (ArithmeticError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            print(f"{method.name}, edits added later: {error}", flush=True)
            return {"later": "refused", "old": "-"}

    def learned(self, method: Method, base: Any) -> str:
        """Facts learned of four by another base; `refused` where it cannot be edited."""
        cases, hparams = self.cases[:FEW], method.hparams
        layers = hparams.layers if isinstance(hparams, LayerHyperParams) else None
        if layers and layers[-1] >= count_layers(base):  # the settings are of a deeper model
            method = dataclasses.replace(method, hparams=hparams.changed(layers=None))
        try:
            result = self._apply(method, base, cases)
            return f"{self.right(result, cases) * len(cases) / 100:.0f} of {len(cases)}"
        except (ArithmeticError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            print(f"{method.name}, {type(base).__name__}: {error}", flush=True)
            return "refused"


def right_answers(model: Any, tokenizer: Any, asked: Sequence[tuple[EvaluationCase, str]]) -> float:
    """Prompts that are answered with the target of their case, in percent."""
    answers = batched_answers(model, tokenizer, [prompt for _, prompt in asked], TOKENS)
    pairs = zip(answers, asked, strict=True)
    return percent([mentions(answer, case.request.target_new) for answer, (case, _) in pairs])


def mixture(tokenizer: Any) -> Any:
    """A tiny random Mixtral."""
    config = tf.MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    auto: Any = tf.AutoModelForCausalLM
    return auto.from_config(config).eval().requires_grad_(False)


def in_nf4(folder: Path) -> Any:
    """The model of a folder in nf4; None without bitsandbytes."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return None
    auto: Any = tf
    config = auto.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = auto.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu"
    )
    return base.eval().requires_grad_(False)


def methods_of(options: argparse.Namespace, hparams: MeGHyperParams) -> list[Method]:
    """With the settings of the report."""
    specs = MethodSpec.parse_list(options.methods)
    names = [spec.searched for spec in specs if spec.searched]
    trials = recorded(options.settings_from, names) if options.settings_from else {}
    common = {"model_name": hparams.model_name, "encoder_name": hparams.encoder_name}
    chosen = {n: best_of(n, BASELINES[n], found, common) for n, found in trials.items()}
    paper = MeGHyperParams.preset("paper")
    return [spec.resolve(hparams, paper, chosen) for spec in specs]


def cases_of(
    options: argparse.Namespace, model: Any, tokenizer: Any, count: int
) -> tuple[list[EvaluationCase], FittingFacts]:
    """`count` facts, and those which the fitting stages may see."""
    if options.data == "reference":
        world = load_world()
        return edit_cases(world, count, seed=0), FittingFacts.of(reference_split(world))
    split = split_cases(
        one_per_subject(without_conflicts(DATASETS[options.data](options.path).cases))
    )
    sample = random.Random(0).sample(list(split.edited), min(len(split.edited), 4 * count))
    wrong = only_wrong(sample, model, tokenizer, MeGHyperParams())
    return choose(wrong, count, 0), FittingFacts.of(split)


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """A table with a row for each method."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name, row in rows.items():
        cells = (row.get(column, "-") for column in columns)
        texts = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def read_options(name: str, description: str | None) -> tuple[argparse.Namespace, MeGHyperParams]:
    """Options of an example that runs every method, and MeG's settings; `name` is its folder."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="meg_editor:llama-reference", help="as model_name")
    parser.add_argument("--data", choices=["reference", *DATASETS], default="reference")
    parser.add_argument("--path", type=Path, help="the file of the data set")
    parser.add_argument("--methods", default="meg," + ",".join(BASELINES), help="as in benchmark")
    parser.add_argument("--settings-from", type=Path, help="report.json of a benchmark")
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(name), help="folder")
    options = parser.parse_args()
    if options.data != "reference" and options.path is None:
        parser.error(f"--path: {options.data} needs the file of the data set")
    hparams = MeGHyperParams.preset("default")
    if options.model != hparams.model_name:
        hparams = MeGHyperParams(model_name=options.model)
    return options, hparams


def write_rows(name: str, options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    """`name`.json in --out: the rows so far, and how they were made."""
    # Paths without the folders of this machine.
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    content = {
        "model": options.model,
        "edits": options.edits,
        "rows": rows,
        "command": f"python examples/{name}.py {shlex.join(words)}",
        "versions": versions(),
        "machine": machine(),
    }
    write_json(options.out / f"{name}.json", content)


def main() -> None:
    """Run and print."""
    options, hparams = read_options("what_methods_do", __doc__)
    model, tokenizer = load_model(hparams)
    cases, facts = cases_of(options, model, tokenizer, 2 * options.edits)
    keywords = {**vars(facts), "seed": 0}
    probes = Probes(model, tokenizer, cases[: options.edits], cases[options.edits :], keywords)
    model.save_pretrained(options.out / "base")  # for nf4, anew: it may be of another model
    rows: dict[str, dict[str, Any]] = {}
    # MeG's own defaults for the mixture: the preset is the reference model's.
    for method, elsewhere in zip(
        methods_of(options, hparams), methods_of(options, MeGHyperParams()), strict=True
    ):
        row = probes.row(method)
        row["MoE"] = probes.learned(elsewhere, mixture(tokenizer))
        base = in_nf4(options.out / "base")
        row["nf4"] = "-" if base is None else probes.learned(method, base)
        rows[method.name] = row
        print(method.name, row, flush=True)
        write_rows("what_methods_do", options, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
