"""EasyEdit's implementations as methods of the benchmark, with our settings.

Workarounds for EasyEdit are marked "Quirk" in a comment; the recorder
of the parity tests (tests/parity/record_locate_methods.py) lists them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from meg_editor.baselines.core.contexts import context_prefixes
from meg_editor.baselines.core.locate import Locate
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.core.token_gradients import TokenGradientHyperParams
from meg_editor.integrations.easyedit.importing import EasyEditError, import_easyedit
from meg_editor.lm.ffn import attention_name, block_name, decoder_blocks, find_ffn
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.runtime.artifacts import ArtifactStore

# Name of a method -> package, module and function of EasyEdit.
_PLACES = {
    "ft": ("ft", "ft_main", "apply_ft_to_model"),
    "memit": ("memit", "memit_main", "apply_memit_to_model"),
    "pmet": ("pmet", "pmet_main", "apply_pmet_to_model"),
    "alphaedit": ("alphaedit", "AlphaEdit_main", "apply_AlphaEdit_to_model"),
    "ultraedit": ("ultraedit", "ultraedit_main", "UltraEditRewriteExecutor"),
}
NAMES = tuple(_PLACES)
# Keys of EasyEdit's dataclasses which ours do not have.
_UNUSED: dict[str, Any] = {
    "kl_factor": 0.0,
    "objective_optimization": "target_new",
    "layer_selection": "all",
    "mom2_adjustment": True,
    "mom2_update_weight": 15000,
    "max_length": 128,
    "dropout": 0.0,
    "half": False,
    "silent": False,
    "no_grad_layers": None,
    "results_dir": None,
    "model_class": None,
    "tokenizer_class": None,
    "tokenizer_name": None,
}


def easyedit_method(name: str) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    """EasyEdit's method `name` with the signature of all methods and the settings of our `name`.

    Raises:
        EasyEditError: EasyEdit is missing, or has no such method.
        ValueError: unknown name.
    """
    if name not in _PLACES:
        raise ValueError(f"easyedit:{name}: expected one of {', '.join(NAMES)}")
    package, main, function = _PLACES[name]
    easyedit = import_easyedit()
    try:
        module = importlib.import_module(f"{easyedit.__name__}.models.{package}.{main}")
    except ImportError as error:
        raise EasyEditError(f"this EasyEdit has no {name}: {error}") from error

    def apply(
        model: CausalLM,
        tok: Tokenizer,
        requests: Sequence[dict[str, Any]],
        hparams: Any,
        *_: Any,
        texts: Sequence[str] | None = None,
        prefixes: Sequence[str] | None = None,
        store: ArtifactStore | None = None,
        **__: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        settings = _settings(module, model, hparams, len(requests))
        tok = copy.deepcopy(tok)
        # Quirk: lookup positions are counted from the left, target tokens from the right.
        tok.padding_side = "right" if isinstance(hparams, CovarianceHyperParams) else "left"
        end = tok.eos_token if hparams.target_end else ""
        rows = [{**row, "target_new": f" {row['target_new']}{end}"} for row in requests]
        if isinstance(hparams, CovarianceHyperParams):
            _fill_caches(module, model, tok, hparams, texts, prefixes, store)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        needs = {key: value.requires_grad for key, value in model.named_parameters()}
        with _quiet_and_elsewhere():
            target = getattr(module, function)
            run = target().apply_to_model if isinstance(target, type) else target
            run(model, tok, rows, settings, copy=False, return_orig_weights=True)
        parameters = dict(model.named_parameters())
        for key, value in parameters.items():
            value.requires_grad_(needs[key])  # Quirk: the method leaves them changed
            value.grad = None
        # Quirk: UltraEdit hands no weights back.
        return model, {k: v for k, v in before.items() if not torch.equal(v, parameters[k])}

    return apply


def _settings(module: Any, model: CausalLM, hparams: Any, edits: int) -> Any:
    """Our settings as the dataclass of EasyEdit's method."""
    layers = hparams.layers_of(model)
    layer = layers[0]
    down, block = find_ffn(model, layer).down, block_name(model, layer)
    swap = f".{layer}."
    conv = hasattr(model.get_submodule(down), "nf")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    names = {id(part): name for name, part in model.named_modules()}
    head = model.get_input_embeddings() if tied else model.get_output_embeddings()
    blocks = decoder_blocks(model)[1]
    parts = model.get_decoder().children()
    norms = [part for part in parts if "norm" in type(part).__name__.lower()]
    values = {
        **_UNUSED,
        **hparams.to_dict(),
        "layers": layers,
        "device": str(model.device),
        # Quirk: AlphaEdit infers from the name which side of a weight is the FFN's width.
        "model_name": "gpt2-xl" if conv else "llama",
        "batch_size": getattr(hparams, "train_batch_size", edits),
        "rewrite_module_tmp": down.replace(swap, ".{}."),
        "rewrite_module_tmps": [down.replace(swap, ".{}.")],
        "layer_module_tmp": f"{block}.".replace(swap, ".{}.").rstrip("."),
        "mlp_module_tmp": down.rpartition(".")[0].replace(swap, ".{}."),
        "attn_module_tmp": attention_name(model, layer).replace(swap, ".{}."),
        "ln_f_module": names[id(norms[-1])],
        # Quirk: a tied head is no named parameter.
        "lm_head_module": names[id(head)],
        "v_loss_layer": len(blocks) - 1,
        "mom2_dataset": "ours",
        "mom2_n_samples": 1,
        "stats_dir": ".",
        "P_loc": "null_space_project.pt",
        "norm_constraint": getattr(hparams, "norm_constraint", None) or False,
    }
    if getattr(hparams, "tuned", "down") == "ffn" and hparams.rewrite_module_tmp is None:
        values["rewrite_module_tmp"] = values["mlp_module_tmp"]
    if isinstance(hparams, TokenGradientHyperParams):
        values["inner_params"] = hparams.linear_layers(model)
        values["batch_size_once"] = min(edits, hparams.batch_size_once)
    kinds = [v for k, v in vars(module).items() if k.endswith("HyperParams") and k != "HyperParams"]
    known = kinds[0].__dataclass_fields__
    return kinds[0](**{key: value for key, value in values.items() if key in known})


def _fill_caches(
    module: Any,
    model: CausalLM,
    tok: Tokenizer,
    hparams: CovarianceHyperParams,
    texts: Sequence[str] | None,
    prefixes: Sequence[str] | None,
    store: ArtifactStore | None,
) -> None:
    """Fill the caches of EasyEdit with the contexts and covariances of our method."""
    if prefixes is None:
        prefixes = context_prefixes(model, tok, hparams.context_prefixes, hparams.seed)
    contexts = [f"{prefix.replace('{', ' ').replace('}', ' ')}{{}}" for prefix in prefixes[1:]]
    module.CONTEXT_TEMPLATES_CACHE = [["{}"], contexts] if contexts else [["{}"]]
    moments = Locate(tok, hparams, texts, store=store).moments(model)
    module.COV_CACHE.clear()  # Quirk: not cleared for another model
    for name, moment in moments.items():
        module.COV_CACHE[model.config._name_or_path.replace("/", "_"), name] = moment
    if hasattr(module, "P_loaded"):
        module.P_loaded = module.cache_c_new = False


@contextlib.contextmanager
def _quiet_and_elsewhere() -> Iterator[None]:
    """Context which hides the printed steps; AlphaEdit writes to a temporary working directory."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
