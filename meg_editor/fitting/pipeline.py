"""fit: the four stages in order - encoder, neurons, gate, generator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from meg_editor.collection.checks import already_correct, check_lengths
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits.edit import edits_of
from meg_editor.edits.edition import Edition
from meg_editor.fitting.checks import check_arguments, check_model
from meg_editor.fitting.collection_stage import CollectionStage
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.encoder_stage import EncoderStage, load_encoder
from meg_editor.fitting.gate_stage import GateStage
from meg_editor.fitting.generator_stage import GeneratorStage
from meg_editor.fitting.tuning_facts import Facts
from meg_editor.fitting.verifier_stage import VerifierStage
from meg_editor.lm.neuron_hook import eager
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.model.fit_report import FitReport
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, merge_requests
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.router import build_index
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.processes import Processes
from meg_editor.runtime.torch_defaults import torch_defaults


@torch_defaults()
def fit(
    model: CausalLM,
    tokenizer: Tokenizer,
    requests: Iterable[EditRequest | Mapping[str, object]],
    hparams: MeGHyperParams,
    *,
    pseudo: Facts | None = None,
    calibration: Facts | None = None,
    encoder: TextEncoder | None = None,
    earlier: Mapping[EditRequest, Tensor] | None = None,
    store: ArtifactStore | None = None,
    processes: Processes | None = None,
    runtime: RuntimeConfig | None = None,
) -> tuple[MeGModel, FitReport]:
    """Edit `model`: run the four stages and return the routed model.

    The model is in evaluation mode from then on: dropout would make answers and neurons a gamble.

    Args:
        requests: the facts; see `merge_requests` for what is refused.
        pseudo: facts with rephrases and locality prompts, as requests or as mappings with these
            keys or EasyEdit's, none of them edited. From them the verifier learns phrasings, or
            with `encoder_tuning` the encoder. Default: those of the reference world, which the
            verifier does not learn anew.
        calibration: facts with rephrases and locality prompts for choosing the gate's threshold,
            neither edited nor in `pseudo`. Default: those of the reference world.
        encoder: overrides `hparams.encoder_name`; a copy of it is tuned.
        earlier: neurons (P,) of edits made before; where a request is among them, its neuron is
            taken as it is.
        store: keeps finished stages on disk, so that a rerun resumes after them.
        processes: `Processes.launched()` under `accelerate launch` or `torchrun`: each
            collects a part of the neurons, and the generator is trained on all of them together.
        runtime: memory, batch and cache sizes.

    Raises:
        RequestError: bad requests or facts.
        TypeError: what is given as model or tokenizer is none of transformers, `hparams` are those
            of another method, or another argument is of another type.
        ValueError: a model without a decoder FFN, a layer that does not exist, weights that are
            not finite, a prompt longer than the model's context.
        FloatingPointError: a loss that is not finite.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0,
        ...                                 gate_threshold=0.8)
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, report = fit(model, tokenizer, facts, hparams)
        >>> edited.answer("The capital of France is")
        ['Lima']
    """
    check_arguments(hparams, encoder, runtime, store, processes)
    merged = merge_requests(requests)
    check_model(model, tokenizer)
    model.eval()
    with eager(model):
        edits = list(merged.requests)
        context = FitContext.of(
            model, tokenizer, edits, hparams, pseudo, calibration, runtime, store, processes
        )
        check_lengths(model, tokenizer, edits, hparams)
        if encoder is None:  # a missing one shows before the LLM answers anything
            encoder = load_encoder(hparams, model)
        hparams, spec = context.hparams, context.spec
        known = context.processes.once(lambda: already_correct(model, tokenizer, edits, hparams))
        report = FitReport(len(edits), merged.duplicates, known)

        tuning = EncoderStage(context, encoder)
        tuned = report.note(tuning.name, tuning.run())
        encoder = tuning.tuned(tuned)
        verifying = VerifierStage(context, encoder)
        learned = report.note(verifying.name, verifying.run()) if verifying.reusable else None
        verifier = verifying.verifier(learned)

        report.collection, shards = CollectionStage(context, earlier or {}).run()
        report.note(CollectionStage.name, shards)
        success = report.collection.success.tolist()
        report.not_collected = [e.prompt for e, ok in zip(edits, success, strict=True) if not ok]

        nameless = sum(edit.subject is None for edit in edits) / len(edits)
        neurons = report.collection.neurons
        gating = GateStage(context, encoder, tuned.key, neurons, nameless, verifier)
        gate, report.calibration, usual = gating.fitted(report.note(gating.name, gating.run()))
        if report.calibration:
            weight = report.calibration.state_weight
            hparams = hparams.changed(gate_state_weight=weight)
        index = build_index(edits, encoder, gating.states, usual, hparams)

        generation = GeneratorStage(context, encoder, tuned.key, index.anchors, report.collection)
        kind, generator = generation.fitted(report.note(generation.name, generation.run()))
        hparams = hparams.changed(generator=kind, gate=gating.kind)
        edited = MeGModel(
            model,
            tokenizer,
            hparams,
            spec,
            encoder,
            Edition(edits_of(edits), gate, index, generator),
            context.runtime,
            verifier,
        )
        edited.fitted = report
        return edited, report
