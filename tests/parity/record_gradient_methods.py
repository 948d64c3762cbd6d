"""Record the updates of EasyEdit's UltraEdit and of MALMEN and RLEdit as their authors wrote them.

    git clone https://github.com/zjunlp/EasyEdit /tmp/EasyEdit       # 14cea82 was recorded
    git clone https://github.com/ChenmienTan/malmen /tmp/malmen      # 1df295d was recorded
    git clone https://github.com/zhrli324/RLEdit /tmp/RLEdit         # c6576a1 was recorded
    cd tests
    MEG_EDITOR_EASYEDIT=/tmp/EasyEdit MEG_EDITOR_MALMEN=/tmp/malmen MEG_EDITOR_RLEDIT=/tmp/RLEdit \
        python -m parity.record_gradient_methods

writes ultraedit.json, malmen.json and rledit.json beside this file, for
test_token_gradient_baselines.py and test_rledit.py; it takes half a minute. Where those projects
need a nudge, a comment begins with "Quirk".
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from meg_editor.integrations.easyedit.importing import import_easyedit
from parity import tiny

KINDS = ("gpt2", "llama")
MODULES = {
    "gpt2": [f"transformer.h.{n}.mlp.{part}" for n in (1, 2) for part in ("c_fc", "c_proj")],
    "llama": [
        f"model.layers.{n}.mlp.{part}_proj" for n in (1, 2) for part in ("gate", "up", "down")
    ],
}
ULTRAEDIT = {"lr": 1e-3, "editor_batch_size": 16}
MALMEN = {
    "rank": 5,
    "n_blocks": 2,
    "lr": 1e-2,
    "meta_lr": 1e-3,
    "loc_coef": 0.7,
    "max_grad_norm": 0.05,
}
RLEDIT = {"time_decay": 0.8, "back_depth": 2, "reg_coef": 0.3}  # beside MALMEN's
AT_ONCE = 2  # facts which RLEdit edits at a time
ROWS = 3  # facts in a batch
STRIDE = 11  # of the numbers of a tensor every eleventh is kept

LOCALITY = [("Water boils at", "a duck"), ("My cat", "was old and blue"), ("Who", "?")] * 2


def example(tok: Any, prompt: str, target: str, end: bool) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of its target."""
    target_ids = tok(f" {target}", add_special_tokens=False)["input_ids"]
    return tok(prompt)["input_ids"], target_ids + [tok.eos_token_id] * end


def padded(rows: list[list[int]], filler: int) -> Tensor:
    """(B, T) with `filler` on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def batches(examples: list[Any]) -> list[list[Any]]:
    """Of `ROWS` each."""
    return [examples[start : start + ROWS] for start in range(0, len(examples), ROWS)]


# ------------------------------------------------------------------------- UltraEdit


def exact_update(self: Any, vectors: Tensor) -> None:
    """Of a normaliser: mean and unbiased deviation of all vectors which it was given.

    Quirk: the running one of both projects multiplies the unbiased variance of each batch by n
    instead of n - 1, so that what it has depends on how the tokens were split into batches.
    """
    self.seen = torch.cat([*getattr(self, "seen", []), vectors])[None]
    everything = self.seen[0].double()
    self.n.fill_(len(everything))
    self.mean.copy_(everything.mean(0))
    self.std.copy_(everything.std(0))


def ultraedit_settings(kind: str, modules: list[str], rows: int, count: int) -> dict[str, Any]:
    """EasyEdit's hyper-parameters."""
    return {
        **ULTRAEDIT,
        "alg_name": "ULTRAEDIT",
        "model_name": f"tiny-{kind}",  # "gpt" or "llama" in it: labels are shifted
        "model_class": "",
        "tokenizer_class": "",
        "tokenizer_name": "",
        "inner_params": list(modules),
        "device": "cpu",
        "dropout": 0.0,
        "no_grad_layers": None,
        "batch_size": count,
        "batch_size_once": rows,
        "token": "mask",
        "silent": True,
        "results_dir": "",
    }


def changes(model: Any, kind: str) -> dict[str, Tensor]:
    """What was added to the weights of the tiny model."""
    before = dict(tiny.model(kind).named_parameters())
    result = {name: (p - before[name]).detach() for name, p in model.named_parameters()}
    return {name: change for name, change in result.items() if bool(change.any())}


def ultraedit_one_by_one(main: Any, kind: str) -> dict[str, Tensor]:
    """The whole method, a fact at a time.

    Quirk: labels are the tokens of the targets alone, padded with tokens which count as targets;
    batches of one have no padding. Quirk: "<s>" would be a target too; tokens without it are used.
    """
    settings = ultraedit_settings(kind, MODULES[kind], 1, len(tiny.FACTS))
    model, tok = tiny.model(kind), tiny.tokenizer("gpt2")
    executor = main.UltraEditRewriteExecutor()
    rows = tiny.rows(tiny.FACTS)
    executor.apply_to_model(model, tok, rows, main.UltraEditHyperParams(**settings))
    return changes(model, kind)


def ultraedit_batched(main: Any, kind: str, modules: list[str], rows: int) -> dict[str, Tensor]:
    """With batches in which labels are where they belong (quirk: see above)."""
    settings = ultraedit_settings(kind, modules, rows, len(tiny.FACTS))
    model, tok = tiny.model(kind), tiny.tokenizer(kind)
    executor = main.UltraEditRewriteExecutor()
    executor.init_model(model, tok, main.UltraEditHyperParams(**settings))
    examples = [example(tok, prompt, target, False) for prompt, _, target in tiny.FACTS]
    tuples = [
        {
            "input_ids": padded([prompt + target for prompt, target in batch], 0),
            "attention_mask": padded([[1] * len(prompt + target) for prompt, target in batch], 0),
            "labels": padded([[-100] * len(prompt) + target for prompt, target in batch], -100),
        }
        for batch in (examples[i : i + rows] for i in range(0, len(examples), rows))
    ]
    executor.alg.edit_model(executor.alg.predict_param_shifts(executor.alg.cache(tuples)), False)
    return changes(model, kind)


def record_ultraedit(checkout: str) -> dict[str, Any]:
    """Three cases for each model."""
    sys.path.insert(0, checkout)
    import_easyedit()
    main = importlib.import_module("easyeditor.models.ultraedit.ultraedit_main")
    method = importlib.import_module("easyeditor.models.ultraedit.ULTRAEDIT")
    recorded: dict[str, Any] = {"versions": versions(checkout, "EasyEdit")}
    update = method.RunningMeanStd.update
    for kind in KINDS:
        one = [tiny.down(kind).format(1)]
        recorded[kind] = {
            "fingerprint": tiny.fingerprint(kind),
            "one batch, as it stands": written(ultraedit_batched(main, kind, one, len(tiny.FACTS))),
        }
        method.RunningMeanStd.update = exact_update
        recorded[kind]["one by one"] = written(ultraedit_one_by_one(main, kind))
        recorded[kind]["batched"] = written(ultraedit_batched(main, kind, MODULES[kind], ROWS))
        method.RunningMeanStd.update = update
    return recorded


# ---------------------------------------------------------------------------- MALMEN


def hypernet_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """A fixed number for each weight of the hypernetwork, by the authors' name for it."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    start, scale = {
        "A": (0.0, 0.3),
        "B": (0.0, 0.3),
        "bias": (0.0, 0.1),
        "scale": (1.0, 0.1),
        "shift": (0.0, 0.1),
        "lr": (MALMEN["lr"], 1e-3),
        "lamda": (0.0, 0.3),
    }[name.removesuffix(".weight").rpartition(".")[2]]
    return torch.from_numpy(start + scale * noise).float()


def authors_tuples(tok: Any, facts: list[tuple[str, str]], token: str) -> list[dict[str, Tensor]]:
    """Batches of prompts and targets; labels are aligned with what predicts them.

    Quirk: the authors leave out the last target token, at which there is no gradient; with "mask"
    that would change what is normalised, and it is left in here, as in EasyEdit.
    """
    result = []
    for batch in batches([example(tok, *fact, True) for fact in facts]):
        ids = [prompt + (target[:-1] if token == "ans" else target) for prompt, target in batch]
        labels = [
            [-100] * (len(prompt) - 1) + target + [-100] * (token != "ans")
            for prompt, target in batch
        ]
        result.append(
            {
                "input_ids": padded(ids, 0),
                "attention_mask": padded([[1] * len(row) for row in ids], 0),
                "labels": padded(labels, -100),
            }
        )
    return result


ASKED = {
    "edit_tuples": [(prompt, target) for prompt, _, target in tiny.FACTS],
    "equiv_tuples": [(f"I think {prompt}", target) for prompt, _, target in tiny.FACTS],
    "unrel_tuples": LOCALITY,
}


def editor_of(project: str, kind: str, folder: str, own: dict[str, Any], **config: Any) -> Any:
    """An authors' editor of a tiny model, with fixed weights of its hypernetwork.

    `own` are settings of the editor, beside MALMEN's, and `config` others.
    """
    module = importlib.import_module(f"editor.{project}")
    model = tiny.model(kind)
    for name in MODULES[kind]:
        model.get_submodule(name).weight.requires_grad_(True)
    settings = SimpleNamespace(
        model=SimpleNamespace(edit_modules=MODULES[kind], name_or_path="tiny", name="tiny"),
        editor=SimpleNamespace(
            **MALMEN, **own, batch_size=16, load_checkpoint=False, cache_dir=folder, name=project
        ),
        editor_device="cpu",
        **config,
    )
    editor = getattr(module, project.upper())(settings, model)
    for name, parameter in editor.net.named_parameters():
        parameter.data.copy_(hypernet_value(name, tuple(parameter.shape)))
    return editor


def malmen_step(kind: str, token: str) -> dict[str, Any]:
    """One step of the authors' training."""
    tok = tiny.tokenizer(kind)
    with tempfile.TemporaryDirectory() as folder:
        # Quirk: one of two loops counts batches by rounding down: six facts are two batches.
        data = SimpleNamespace(n_edits=len(tiny.FACTS), batch_size=ROWS)
        editor = editor_of("malmen", kind, folder, {"token": token}, data=data)
        before = {name: p.detach().clone() for name, p in editor.net.named_parameters()}
        shifts: dict[str, Tensor] = {}
        update = editor.update_hypernet

        def keep(result: dict[str, Tensor]) -> None:
            shifts.update(result)
            update(result)

        editor.update_hypernet = keep
        logged: dict[str, float] = {}
        sys.modules["wandb"].log = logged.update  # type: ignore[attr-defined]
        editor.train([{k: authors_tuples(tok, v, token) for k, v in ASKED.items()}])
    named = dict(editor.net.named_parameters())
    return {
        "losses": {name: float(loss) for name, loss in logged.items()},
        "shifts": written(shifts),
        "gradients": written({name: p.grad for name, p in named.items()}),
        "steps": written({name: p.detach() - before[name] for name, p in named.items()}),
    }


def differentiated_at_once(loss: Any, model: Any) -> Any:
    """The loss, linear in the weights, with the slope it has where it is computed.

    Quirk: locality losses are differentiated when the weights have been put back behind autograd's
    back, so that their gradients are those of no model.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def tangent(*args: Any) -> Tensor:
        value = loss(*args)
        slopes = torch.autograd.grad(value, weights)
        line = sum((slope * weight).sum() for slope, weight in zip(slopes, weights, strict=True))
        return line - line.detach() + value.detach()

    return tangent


def rledit_sequence(kind: str) -> dict[str, Any]:
    """A sequence of the authors' training, three times two facts.

    Quirk: shifts are computed without gradients, so that the penalty on them has none.
    """
    tok = tiny.tokenizer(kind)
    module: Any = importlib.import_module("editor.rledit")
    sequence = [
        {k: authors_tuples(tok, v[start : start + AT_ONCE], "ans") for k, v in ASKED.items()}
        for start in range(0, len(tiny.FACTS), AT_ONCE)
    ]
    with tempfile.TemporaryDirectory() as folder:
        dataset = SimpleNamespace(n_edits=AT_ONCE, batch_size=AT_ONCE)
        editor = editor_of(
            "rledit",
            kind,
            folder,
            {"token": "ans", **RLEDIT},
            dataset=dataset,
            num_seq=len(sequence),
        )
        loss = importlib.import_module("util").kl_div
        module.kl_div = differentiated_at_once(loss, editor.model)
        steps: list[dict[str, Any]] = []
        update, step = editor.update_hypernet, editor.opt.step
        gradients: dict[str, Any] = {}

        def keep(result: dict[str, Tensor], now: bool) -> None:
            steps.append(written(result))
            update(result, now)

        def keep_gradients() -> None:
            gradients.update(written({n: p.grad for n, p in editor.net.named_parameters()}))
            step()

        editor.update_hypernet, editor.opt.step = keep, keep_gradients
        sys.modules["wandb"].log = lambda _: None  # type: ignore[attr-defined]
        editor.train(sequence)
    return {"shifts": steps, "gradients": gradients}


def authors_modules(checkout: str) -> None:
    """Make the modules of MALMEN or RLEdit, which have the same names, those of a checkout."""
    own = ("editor", "nets", "util", "model", "glue_eval")
    for name in list(sys.modules):
        if name.partition(".")[0] in own:
            del sys.modules[name]
    # What the authors' modules import and this does not need.
    for name in ("omegaconf", "wandb", "model", "glue_eval", "glue_eval.glue_eval"):
        sys.modules[name] = ModuleType(name)
    sys.modules["omegaconf"].DictConfig = SimpleNamespace  # type: ignore[attr-defined]
    sys.modules["model"].make_model = None  # type: ignore[attr-defined]
    sys.modules["glue_eval.glue_eval"].GLUEEval = None  # type: ignore[attr-defined]
    sys.path.insert(0, checkout)
    importlib.import_module("nets").RunningMeanStd.update = exact_update


def record_malmen(checkout: str) -> dict[str, Any]:
    """A step for each model and choice of tokens."""
    authors_modules(checkout)
    recorded: dict[str, Any] = {"versions": versions(checkout, "MALMEN")}
    for kind in KINDS:
        recorded[kind] = {"fingerprint": tiny.fingerprint(kind)}
        recorded[kind].update({token: malmen_step(kind, token) for token in ("ans", "mask")})
    return recorded


def record_rledit(checkout: str) -> dict[str, Any]:
    """A sequence for each model."""
    authors_modules(checkout)
    recorded: dict[str, Any] = {"versions": versions(checkout, "RLEdit")}
    for kind in KINDS:
        recorded[kind] = {"fingerprint": tiny.fingerprint(kind), **rledit_sequence(kind)}
    return recorded


# ----------------------------------------------------------------------------- files


def sample(values: Tensor) -> Tensor:
    """Those numbers of a tensor which are kept."""
    return values.detach().double().flatten()[::STRIDE]


def written(tensors: dict[str, Any]) -> dict[str, Any]:
    """Of each tensor its norm and a part of its numbers, with seven digits, as JSON."""

    def entry(values: Tensor) -> dict[str, Any]:
        norm = values.detach().double().norm().item()
        return {
            "norm": float(f"{norm:.7g}"),
            "some": [float(f"{value:.7g}") for value in sample(values).tolist()],
        }

    return {name: entry(values) for name, values in tensors.items()}


def versions(checkout: str, project: str) -> dict[str, str]:
    """Of what made the numbers."""
    command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    return {
        project: subprocess.check_output(command, text=True).strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Record all, in a temporary folder; write the files beside this one."""
    torch.set_num_threads(1)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, record, variable in (
            ("ultraedit", record_ultraedit, "MEG_EDITOR_EASYEDIT"),
            ("malmen", record_malmen, "MEG_EDITOR_MALMEN"),
            ("rledit", record_rledit, "MEG_EDITOR_RLEDIT"),
        ):
            recorded = record(os.environ[variable])
            text = json.dumps(recorded, separators=(",", ":")) + "\n"
            (here / f"{name}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
