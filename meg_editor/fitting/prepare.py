"""prepare: do ahead what depends on no edit, so that the next fits take it up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.fitting.checks import check_arguments, check_model
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.encoder_stage import EncoderStage, load_encoder
from meg_editor.fitting.gate_stage import GateStage
from meg_editor.fitting.stage import Stage
from meg_editor.fitting.tuning_facts import Facts
from meg_editor.fitting.verifier_stage import VerifierStage
from meg_editor.lm.neuron_hook import eager
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import Artifact, CacheStore
from meg_editor.runtime.torch_defaults import torch_defaults

# Share of facts without a subject: a score without a name is another one.
_NAMELESS = {0.0: "facts with a subject", 1.0: "facts without one"}


@dataclass(frozen=True)
class Prepared:
    """Something that fits need and that depends on no edit.

    Attributes:
        name: "model", "encoder", "verifier" or "gate".
        what: what was done, or why there is nothing to do.
        path: where it is kept; None: there is nothing to keep.
        seconds: it took, if known.
        resumed: whether that was earlier.

    Example:
        >>> print(Prepared("encoder", "tuned on 800 facts", Path("encoder-1.safetensors"), 42.0))
        encoder  tuned on 800 facts in 42.0 s -> encoder-1.safetensors
        >>> print(Prepared("gate", "the threshold is given"))
        gate     nothing to prepare: the threshold is given
    """

    name: str
    what: str
    path: Path | None = None
    seconds: float | None = None
    resumed: bool = False

    def __str__(self) -> str:
        if self.path is None:
            return f"{self.name:8} nothing to prepare: {self.what}"
        seconds = "" if self.seconds is None else f" in {self.seconds:.1f} s"
        earlier = " (earlier)" if self.resumed else ""
        return f"{self.name:8} {self.what}{seconds}{earlier} -> {self.path}"


@torch_defaults()
def prepare(
    model: CausalLM,
    tokenizer: Tokenizer,
    hparams: MeGHyperParams,
    *,
    pseudo: Facts | None = None,
    calibration: Facts | None = None,
    encoder: TextEncoder | None = None,
    runtime: RuntimeConfig | None = None,
) -> list[Prepared]:
    """Tune the encoder and calibrate the gate ahead, for every later fit of few facts.

    The results are kept in the cache folder (MEG_EDITOR_CACHE) by all they depend on: weights of
    the model and of the encoder, settings, tuning facts. `fit`, `apply_meg_to_model` and EasyEdit
    with the same arguments find them there, unless an edit is one of the tuning facts.

    Args:
        pseudo, calibration, encoder, runtime: see `meg_editor.fitting.pipeline.fit`.

    Returns:
        What was prepared and what needs no preparation; each prints as a line.

    Raises:
        TypeError, ValueError: what `fit` raises of its arguments.
        OSError: the cache folder cannot be written.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0,
        ...                                 gate_threshold=0.8)
        >>> for line in prepare(*load_model(hparams), hparams):
        ...     print(line)
        encoder  nothing to prepare: it is not tuned
        gate     nothing to prepare: the encoder's verifier is shipped
    """
    check_arguments(hparams, encoder, runtime)
    check_model(model, tokenizer)
    model.eval()
    with eager(model):
        context = FitContext.of(model, tokenizer, [], hparams, pseudo, calibration, runtime)
        context = replace(context, prepared=CacheStore("prepared", required=True))
        if encoder is None:
            encoder = load_encoder(hparams, model)
        return list(_prepared(context, encoder))


def _prepared(context: FitContext, encoder: TextEncoder) -> Iterator[Prepared]:
    tuning = EncoderStage(context, encoder)
    tuned = tuning.prepare() if tuning.reusable else tuning.run()
    if tuning.reusable:
        yield _kept(tuning, tuned, f"tuned on {len(context.pseudo)} facts")
    else:
        yield Prepared(tuning.name, "it is not tuned")
    encoder = tuning.tuned(tuned)
    verifying = VerifierStage(context, encoder)
    learned = verifying.prepare() if verifying.reusable else None
    if learned:
        yield _kept(verifying, learned, f"learned from {len(verifying.facts)} facts")
    verifier = verifying.verifier(learned)
    for nameless, which in _NAMELESS.items():
        none = torch.zeros(0, context.spec.size)
        gating = GateStage(context, encoder, tuned.key, none, nameless, verifier)
        if gating.reusable:
            artifact = gating.prepare()
            yield _kept(gating, artifact, _what(gating, artifact, which))
        elif learned:
            yield Prepared(gating.name, "the verifier decides")
        elif verifier:
            yield Prepared(gating.name, "the encoder's verifier is shipped")
        elif gating.calibrated:
            yield Prepared(gating.name, "this gate learns the edits themselves")
        else:
            yield Prepared(gating.name, "the threshold is given")
        if not (gating.reusable and gating.calibrated):
            return


def _what(gating: GateStage, artifact: Artifact, which: str) -> str:
    if not gating.calibrated:
        return "hidden states of other queries read"
    threshold = float(gating.fitted(artifact).gate.threshold)
    way = "thoroughly" if gating.thorough else "quickly"
    return f"threshold {threshold:.3f} for at most {gating.most_edits} {which} calibrated {way}"


def _kept(stage: Stage, artifact: Artifact, what: str) -> Prepared:
    path = stage.context.prepared.path(stage.name, artifact.key)
    return Prepared(stage.name, what, path, artifact.seconds, artifact.resumed)
