"""MeG beside EasyEdit's methods, through the same BaseEditor, on the reference model.

    python examples/easyedit_side_by_side.py --edits 64 --methods MeG FT MEMIT PMET AlphaEdit

Every method edits the same facts of a fresh copy of the model and is scored by EasyEdit. Methods
which the installed EasyEdit lacks are left out. MEMIT, PMET and AlphaEdit want covariances of
Wikipedia; theirs are computed from the sentences of the reference world instead.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from meg_editor import MeGHyperParams, load_model
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.integrations.easyedit import register
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.reference import resolve_model_name

DOWN = "model.layers.{}.mlp.down_proj"
MODULES = {
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "model.embed_tokens",  # tied
}
# EasyEdit's settings for Llama, but for layers, rates, clamps and weights: these are the best
# of 6 to 14 trials per method on 16 facts which are neither edited nor tested.
LOCATE = {
    "layers": [0],
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 5.0,
    "v_loss_layer": 3,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 12,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_update_weight": 200,
    "mom2_dataset": "the reference world",
    "mom2_n_samples": 1,
    "mom2_dtype": "float32",
    "rewrite_module_tmp": DOWN,
    **MODULES,
}


def settings(method: str, easyedit: Any, edits: int, folder: str) -> Any:
    """Hyper-parameters of `method`, or None where this EasyEdit does not have it."""
    name = str(resolve_model_name("meg_editor:llama-reference"))
    common = {"alg_name": method, "model_name": name, "device": "cpu", "batch_size": edits}
    if method == "MeG":
        return MeGHyperParams.preset("default", device="cpu", batch_size=edits)
    if method == "FT":
        values = {
            "layers": [2],
            "num_steps": 25,
            "lr": 2e-3,
            "weight_decay": 0,
            "kl_factor": 0,
            "norm_constraint": False,
            "rewrite_module_tmp": f"{DOWN}.weight",
            "max_length": 40,
            "objective_optimization": "target_new",
            **MODULES,
        }
    elif method == "PMET":
        values = LOCATE | {
            "layers": [0, 1],
            "clamp_norm_factor": 20,
            "mom2_update_weight": 20,
            "v_weight_decay": 0.5,
            "nll_loss_factor": 1,
            "rewrite_module_tmps": [DOWN],
            "mlp_module_tmp": DOWN,
            "attn_module_tmp": "model.layers.{}.self_attn.o_proj",
            "stats_dir": folder,
        }
    elif method == "AlphaEdit":
        values = LOCATE | {
            "clamp_norm_factor": 4,
            "nullspace_threshold": 20,
            "L2": 1000,
            "P_loc": f"{folder}/null_space_project.pt",
            "stats_dir": folder,
        }
    elif method == "ULTRAEDIT":
        values = {
            "model_class": "AutoModelForCausalLM",
            "tokenizer_class": "AutoTokenizer",
            "tokenizer_name": name,
            "inner_params": [
                f"model.layers.{n}.mlp.{p}_proj" for n in (1, 2) for p in ("gate", "up")
            ],
            "dropout": 0.0,
            "no_grad_layers": None,
            "lr": 1e-3,
            "token": "mask",
            "batch_size_once": min(edits, 16),
            "editor_batch_size": 1024,
            "silent": True,
            "results_dir": folder,
        }
    else:
        values = LOCATE | {"stats_dir": folder}
    spelled = {"ULTRAEDIT": "UltraEdit"}.get(method, method)
    hparams = getattr(easyedit, f"{spelled}HyperParams", None)
    if (
        hparams is None
        or method not in importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
    ):
        return None
    known = set(hparams.__dataclass_fields__)
    return hparams(**{key: value for key, value in (common | values).items() if key in known})


@functools.cache
@torch.no_grad()
def covariances() -> dict[str, torch.Tensor]:
    """Second moments of what enters the FFNs' last layers, over sentences of the world."""
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    world = load_world()
    facts = world.in_split("pseudo", "common")
    texts = [f"{world.prompts(fact, 'edit')[0]} {fact.answer}" for fact in facts]
    sums = {DOWN.format(layer): torch.zeros(()) for layer in range(len(model.model.layers))}
    counts = dict.fromkeys(sums, 0)
    for name in sums:

        def add(_: Any, inputs: Any, name: str = name) -> None:
            keys = inputs[0].flatten(0, 1)
            sums[name] = sums[name] + keys.T @ keys
            counts[name] += len(keys)

        model.get_submodule(name).register_forward_pre_hook(add)
    for text in texts:
        model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"])
    return {name: sums[name] / counts[name] for name in sums}


def run(method: str, easyedit: Any, cases: list[EvaluationCase], folder: str) -> str:
    hparams = settings(method, easyedit, len(cases), folder)
    if hparams is None:
        return f"{method:10} not in this EasyEdit"
    editor = editor_of(hparams, easyedit)
    neighbours = [next(iter(case.locality.values()))[0].prompt for case in cases]
    truths = batched_answers(editor.model, editor.tok, neighbours, 12)
    name = editor.model.config._name_or_path.replace("/", "_")
    for package in ("memit", "pmet", "alphaedit"):
        try:
            parent = importlib.import_module(f"easyeditor.models.{package}")
        except ImportError:
            continue
        main = {"memit": "memit_main", "pmet": "pmet_main", "alphaedit": "AlphaEdit_main"}[package]
        module = importlib.import_module(f"{parent.__name__}.{main}")
        module.COV_CACHE.update({(name, key): value for key, value in covariances().items()})
    start = time.perf_counter()
    metrics, _, _ = editor.batch_edit(
        prompts=[case.request.prompt for case in cases],
        ground_truth=[case.truth for case in cases],
        target_new=[case.request.target_new for case in cases],
        subject=[case.request.subject for case in cases],
        rephrase_prompts=[case.paraphrases[0] for case in cases],
        verbose=False,
        **locality(easyedit, neighbours, truths),
    )
    seconds = time.perf_counter() - start

    def mean(key: str) -> float:
        return 100 * float(np.mean([np.mean(metric["post"][key]) for metric in metrics]))

    unchanged = "-"  # the wheel measures "pre" after the weights have changed
    if method == "MeG" or not is_wheel(easyedit):
        pairs = [[m[when]["locality"]["n_output"][0] for when in ("pre", "post")] for m in metrics]
        unchanged = (
            f"{100 * np.mean([np.mean(np.equal(before, after)) for before, after in pairs]):.1f}"
        )
    return (
        f"{method:10} {mean('rewrite_acc'):8.1f} {mean('rephrase_acc'):9.1f} {unchanged:>9} "
        f"{seconds:8.0f}"
    )


def editor_of(hparams: Any, easyedit: Any) -> Any:
    """EasyEdit's editor, round what its methods stumble over."""
    name = hparams.model_name
    if hparams.alg_name != "MeG" and is_wheel(easyedit):
        # It would take LlamaTokenizer, and its fine-tuning masks unknown tokens and pads right.
        model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        tokenizer.unk_token = tokenizer.pad_token
        hparams.model_name = (model, tokenizer)
    editor = easyedit.BaseEditor.from_hparams(hparams)
    hparams.model_name = editor.model_name = name
    if hparams.alg_name == "PMET" or (hparams.alg_name != "MeG" and is_wheel(easyedit)):
        editor.tok.padding_side = "right"  # otherwise PMET's loss is NaN
    return editor


def is_wheel(easyedit: Any) -> bool:
    """Whether it is EasyEdit 0.0.1.dev0."""
    return "locality_prompts" in inspect.signature(easyedit.BaseEditor.batch_edit).parameters


def locality(easyedit: Any, prompts: list[str], truths: list[str]) -> dict[str, Any]:
    """The argument for neighbours, which the wheel calls otherwise for methods but MeG."""
    inputs = {"n": {"prompt": prompts, "ground_truth": truths}}
    return {"locality_prompts" if is_wheel(easyedit) else "locality_inputs": inputs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["MeG", "FT", "MEMIT", "PMET", "AlphaEdit", "ULTRAEDIT"],
    )
    options = parser.parse_args()
    easyedit = register()
    cases = edit_cases(load_world(), options.edits, options.seed)
    lines = []
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # AlphaEdit writes to the working directory
        try:
            for method in options.methods:
                try:
                    lines.append(run(method, easyedit, cases, folder))
                except Exception as error:  # the wheel's MEMIT was written for transformers 4
                    lines.append(f"{method:10} fails: {type(error).__name__}: {error}")
        finally:
            os.chdir(here)
    print(f"\n{'method':10} {'rewrite':>8} {'rephrase':>9} {'locality':>9} {'seconds':>8}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
