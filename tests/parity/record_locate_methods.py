"""Record what EasyEdit's own MEMIT, PMET, AlphaEdit and FT add to the weights of the tiny models.

    git clone https://github.com/zjunlp/EasyEdit /tmp/EasyEdit  # 14cea82 was recorded
    cd tests
    MEG_EDITOR_EASYEDIT=/tmp/EasyEdit python -m parity.record_locate_methods

writes tests/parity/locate.json, which tests/test_locate_baselines.py reads; it takes a minute.
With MEG_EDITOR_SHOW=1 it shows what EasyEdit prints: which facts are clamped or finished early.
Where EasyEdit needs a nudge to do what its papers say, a comment here begins with "Quirk".
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from meg_editor.integrations.easyedit.importing import import_easyedit
from parity import tiny

LAYERS = [1, 2]
LOCATE = {
    "layers": LAYERS,
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 2.0,
    "kl_factor": 0.0625,
    "mom2_update_weight": 20,
}
PMET = {"nll_loss_factor": 1.0}
PMET_SMALL = 1e-3  # kl_factor with which a fact ends once its target is the likeliest answer
ALPHAEDIT = {"nullspace_threshold": 0.03, "L2": 0.1, "kl_factor": 0.002}
FT = {"layers": [1], "num_steps": 6, "lr": 5e-3, "weight_decay": 0.0, "kl_factor": 0.0}
FT_ROWS = 4  # facts in a step: batches of 4 and 2
FT_MOST = 2e-2  # norm_constraint

MODULES = {
    "gpt2": {
        "rewrite_module_tmp": tiny.down("gpt2"),
        "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp",
        "attn_module_tmp": "transformer.h.{}.attn",
        "ln_f_module": "transformer.ln_f",
        # Quirk: a tied head is no named parameter, so "lm_head" is not found: name the embeddings.
        "lm_head_module": "transformer.wte",
    },
    "llama": {
        "rewrite_module_tmp": tiny.down("llama"),
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
    },
}
# Quirk: AlphaEdit asks the model's *name* which side of a weight is the FFN's width.
NAMES = {"gpt2": "tiny-gpt2-xl", "llama": "tiny-llama"}


def part(name: str) -> Any:
    """A module of EasyEdit."""
    return importlib.import_module(f"easyeditor.models.{name}")


def second_moments(kind: str, model: Any) -> dict[str, Tensor]:
    """Module -> the mean of k kᵀ, one text after the other, in double precision."""
    tok = tiny.tokenizer(kind)
    result = {}
    for layer in LAYERS:
        name = tiny.down(kind).format(layer)
        keys: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, keys=keys: keys.append(args[0][0].double())
        )
        for text in tiny.TEXTS:
            model(**tok(text, return_tensors="pt"))
        handle.remove()
        together = torch.cat(keys)
        result[name] = (together.T @ together / len(together)).float()
    return result


def common(kind: str, method: str) -> dict[str, Any]:
    """Settings which every EasyEdit method wants."""
    return {
        **MODULES[kind],
        "alg_name": method,
        "model_name": NAMES[kind],
        "device": "cpu",
    }


def locate_settings(kind: str, method: str) -> dict[str, Any]:
    """Settings of the locate-then-edit methods."""
    return {
        **common(kind, method),
        **LOCATE,
        "layer_selection": "all",
        "v_loss_layer": tiny.LAYERS - 1,
        "mom2_adjustment": True,
        "mom2_dataset": "none",
        "mom2_n_samples": 1,
        "mom2_dtype": "float32",
        "stats_dir": "nowhere",
    }


def prepared(main: Any, kind: str, model: Any) -> Any:
    """The tokenizer for a locate-then-edit method, of which the caches are filled."""
    # Quirk: the prefixes, sampled once in a process, stay for every later model.
    main.CONTEXT_TEMPLATES_CACHE = [["{}"], [f"{prefix}{{}}" for prefix in tiny.PREFIXES[1:]]]
    # Quirk: covariances stay too, by the model's name: those of the unedited model serve all calls.
    main.COV_CACHE.clear()
    for name, moment in second_moments(kind, model).items():
        main.COV_CACHE[model.config._name_or_path, name] = moment
    tok = tiny.tokenizer(kind)
    # Quirk: positions are counted from the left; padded there, they are of other tokens.
    tok.padding_side = "right"
    return tok


def memit(kind: str) -> dict[str, Tensor]:
    """MEMIT's updates."""
    main, model = part("memit.memit_main"), tiny.model(kind)
    tok = prepared(main, kind, model)
    hparams = main.MEMITHyperParams(**locate_settings(kind, "MEMIT"))
    deltas = main.execute_memit(model, tok, tiny.rows(tiny.FACTS), hparams)
    shapes = {name: model.get_parameter(name).shape for name in deltas}
    return {
        name: main.upd_matrix_match_shape(keys @ values.T, shapes[name])
        for name, (keys, values) in deltas.items()
    }


def pmet(kind: str, **changes: Any) -> dict[str, Tensor]:
    """PMET's updates of the FFN."""
    main, model = part("pmet.pmet_main"), tiny.model(kind)
    tok = prepared(main, kind, model)
    settings = {**locate_settings(kind, "PMET"), **PMET, **changes}
    hparams = main.PMETHyperParams(**settings, rewrite_module_tmps=[tiny.down(kind)])
    requests = tiny.rows(tiny.FACTS)
    for request in requests:
        # Quirk: only for models with "gpt" in their names it puts the space in front of a target.
        request["target_new"] = f" {request['target_new']}"
    return dict(main.execute_pmet(model, tok, requests, hparams))


def alphaedit(kind: str) -> list[dict[str, Tensor]]:
    """AlphaEdit's updates in two calls, the second on what the first left."""
    main, model = part("alphaedit.AlphaEdit_main"), tiny.model(kind)
    tok = prepared(main, kind, model)
    main.P_loaded = False
    settings = {**locate_settings(kind, "AlphaEdit"), **ALPHAEDIT}
    # Quirk: the projection is always written to ./null_space_project.pt, but looked for at P_loc.
    # Reading it needs that very name; `main` below runs in a temporary folder.
    hparams = main.AlphaEditHyperParams(**settings, P_loc="null_space_project.pt")
    Path("null_space_project.pt").unlink(missing_ok=True)
    result = []
    for call, facts in enumerate((tiny.FACTS, tiny.LATER)):
        before = copy.deepcopy(model)
        # Quirk: the memory of earlier edits is a global of the module, kept from model to model.
        main.apply_AlphaEdit_to_model(model, tok, tiny.rows(facts), hparams, reset_cache=call == 0)
        names = [f"{tiny.down(kind).format(layer)}.weight" for layer in LAYERS]
        result.append({n: model.get_parameter(n) - before.get_parameter(n) for n in names})
    return result


def ft(kind: str, most: float | None) -> dict[str, Tensor]:
    """FT's updates: of every parameter whose name contains the module's."""
    main, model, tok = part("ft.ft_main"), tiny.model(kind), tiny.tokenizer(kind)
    # Quirk: which tokens are the target's is right where prompts are padded on the left alone ...
    tok.padding_side = "left"
    # ... and there GPT-2 needs explicit position ids, which EasyEdit does not do.
    model.register_forward_pre_hook(
        lambda _, args, kwargs: (
            args,
            {**kwargs, "position_ids": (kwargs["attention_mask"].cumsum(1) - 1).clamp(min=0)},
        ),
        with_kwargs=True,
    )
    hparams = main.FTHyperParams(
        **common(kind, "FT"),
        **FT,
        batch_size=FT_ROWS,
        objective_optimization="target_new",
        norm_constraint=False if most is None else most,  # only a float counts
    )
    return dict(main.execute_ft(model, tok, tiny.rows(tiny.FACTS), hparams))


def written(updates: dict[str, Tensor]) -> dict[str, list[Any]]:
    """As JSON, seven digits of each number."""

    def short(values: Any) -> Any:
        return [short(v) for v in values] if isinstance(values, list) else float(f"{values:.7g}")

    return {name: short(update.detach().double().tolist()) for name, update in updates.items()}


def main() -> None:
    """Run everything, in a temporary folder; write the file beside this one."""
    checkout = os.environ["MEG_EDITOR_EASYEDIT"]
    sys.path.insert(0, checkout)
    import_easyedit()
    torch.set_num_threads(1)
    revision = subprocess.check_output(
        ["git", "-C", checkout, "rev-parse", "--short", "HEAD"], text=True
    )
    recorded: dict[str, Any] = {
        "versions": {
            "EasyEdit": revision.strip(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    }
    target = Path(__file__).with_name("locate.json")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for kind in MODULES:
            printed = io.StringIO()  # EasyEdit prints every step
            with contextlib.redirect_stdout(printed):
                first, second = alphaedit(kind)
                recorded[kind] = {
                    "fingerprint": tiny.fingerprint(kind),
                    "MEMIT": written(memit(kind)),
                    "PMET": written(pmet(kind)),
                    "PMET, small kl_factor": written(pmet(kind, kl_factor=PMET_SMALL)),
                    "AlphaEdit": written(first),
                    "AlphaEdit, second call": written(second),
                    "FT": written(ft(kind, None)),
                    "FT, norm_constraint": written(ft(kind, FT_MOST)),
                }
            if os.environ.get("MEG_EDITOR_SHOW"):
                sys.stderr.write(printed.getvalue())
        os.chdir(target.parent)
    target.write_text(json.dumps(recorded, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
