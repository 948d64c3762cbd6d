"""The four fitting stages in order: encoder, neurons, gate, generator."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from meg_editor.collection.collect import Collection
from meg_editor.collection.shards import collect_in_shards
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.held_out import rehearse
from meg_editor.generators import GENERATORS, WeightGenerator
from meg_editor.lm.fingerprint import fingerprint, present_parameters
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.reference import resolve_model_name
from meg_editor.lm.tokens import batched_answers, encode_example, max_target_length
from meg_editor.model.fit_report import FitReport
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest, RequestError, merge_requests
from meg_editor.routing.encoder import TextEncoder, tune_encoder
from meg_editor.routing.gates import GATES, Calibration, Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.router import build_index
from meg_editor.runtime.artifacts import ArtifactStore, Stage, Tensors
from meg_editor.runtime.processes import Processes


def fit(
    model: Any,
    tokenizer: Any,
    requests: Iterable[EditRequest | Mapping[str, Any]],
    hparams: MeGHyperParams,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    calibration: Sequence[EditRequest] | None = None,
    encoder: TextEncoder | None = None,
    earlier: Mapping[EditRequest, Tensor] | None = None,
    store: ArtifactStore | None = None,
    processes: Processes | None = None,
) -> tuple[MeGModel, FitReport]:
    """Edit `model`: run the four stages and return the routed model.

    Args:
        requests: the facts; see `merge_requests` for what is refused.
        pseudo: facts with rephrases for tuning the encoder, none of them edited. Default: those
            of the reference world.
        calibration: facts with rephrases and locality prompts for choosing the gate's threshold,
            neither edited nor in `pseudo`. Default: those of the reference world.
        encoder: overrides `hparams.encoder_name`; a copy of it is tuned.
        earlier: neurons (P,) of edits made before; where a request is among them, its neuron is
            taken as it is.
        store: keeps finished stages on disk, so that a rerun resumes after them.
        processes: who shares the work, `Processes.launched()` under `accelerate launch`: each
            collects a part of the neurons, and the generator is trained on all of them together.

    Raises:
        RequestError: bad requests.
        ValueError: a model without a decoder FFN, a layer that does not exist, weights that are
            not finite, a prompt longer than the model's context.
        FloatingPointError: a loss that is not finite.
    """
    merged = merge_requests(requests)
    edits = list(merged.requests)
    store, processes = store or ArtifactStore(None), processes or Processes()
    _check_weights(model)
    _check_lengths(model, tokenizer, edits, hparams)
    spec = NeuronSpec.from_hparams(model, hparams)
    if pseudo is None or calibration is None:
        from meg_editor.data.world.requests import calibration_requests, pseudo_requests

        pseudo = pseudo_requests() if pseudo is None else pseudo
        calibration = calibration_requests() if calibration is None else calibration
    prompts = {request.prompt for request in edits}
    pseudo = [fact for fact in pseudo if fact.prompt not in prompts]
    calibration = [fact for fact in calibration if fact.prompt not in prompts]
    already_correct = processes.once(lambda: _already_answered(model, tokenizer, edits, hparams))
    report = FitReport(len(edits), merged.duplicates, already_correct)

    # A stage depends on the settings that bear its name, the seed, and the stages before it.
    def settings(*prefixes: str) -> dict[str, Any]:
        return {k: v for k, v in hparams.to_dict().items() if k.startswith((*prefixes, "seed"))}

    def run(
        name: str, inputs: list[Any], compute: Callable[[], Tensors], together: bool = False
    ) -> Stage:
        """In the main process for all, or in all processes `together`."""
        start = time.perf_counter()
        if not together:
            stage = processes.once(lambda: store.run(name, inputs, compute))
        elif (found := processes.once(lambda: store.find(name, inputs))) is not None:
            stage = found
        else:
            tensors = compute()
            stage = processes.once(lambda: store.keep(name, inputs, tensors, start))
        report.seconds[name] = stage.seconds
        if stage.resumed:
            report.resumed.append(name)
        return stage

    if encoder is None:
        name = resolve_model_name(hparams.encoder_name)
        encoder = TextEncoder.from_pretrained(name, hparams.encoder_pooling)
    encoder = copy.deepcopy(encoder).to(model.device)
    tuned = run(
        "encoder",
        [settings("encoder"), fingerprint(encoder), _texts(pseudo)],
        lambda: _tune(encoder, pseudo, hparams),
    )
    encoder.load_state_dict(tuned.tensors)
    reader = PromptReader(tokenizer, hparams.prompt_template)
    background = [fact.prompt for fact in pseudo]
    states = HiddenStateReader(model, tokenizer, spec, reader)

    earlier = earlier or {}
    new = [row for row, edit in enumerate(edits) if edit not in earlier]
    collected = collect_in_shards(
        model,
        tokenizer,
        spec,
        [edits[row] for row in new],
        hparams,
        [settings("collection", "prompt_template"), spec.to_dict(), fingerprint(model)],
        store,
        processes,
    )
    report.seconds["collection"] = collected.seconds
    if collected.resumed:
        report.resumed.append("collection")
    report.collection = collection = Collection.empty(spec, len(edits))
    for whole, found in zip(
        vars(collection).values(), vars(collected.collection).values(), strict=True
    ):
        whole[new] = found
    known = {row: earlier[edit] for row, edit in enumerate(edits) if edit in earlier}
    for row, neuron in known.items():
        collection.neurons[row] = neuron
    neurons_key = [collected.key, [[row, float(n.double().sum())] for row, n in known.items()]]
    told = collection.success.tolist()
    report.not_collected = [r.prompt for r, ok in zip(edits, told, strict=True) if not ok]

    gate = GATES[hparams.gate].build(hparams, encoder.dimension).to(model.device)
    gated = run(
        "gate",
        [
            settings("gate", "familiarity"),
            states.place,
            tuned.key,
            neurons_key,
            _texts(calibration),
        ],
        lambda: _fit_gate(
            gate,
            encoder.encode([edit.prompt for edit in edits]),
            lambda: rehearse(
                model,
                tokenizer,
                spec,
                encoder,
                gate,
                edits,
                collection.neurons,
                calibration,
                background,
                hparams,
            ),
            hparams,
        ),
    )
    report.calibration = Calibration.from_tensors(gated.tensors)
    gate.load_state_dict({k[5:]: v for k, v in gated.tensors.items() if k.startswith("gate.")})
    if report.calibration:
        weight = report.calibration.state_weight
        hparams = dataclasses.replace(hparams, gate_state_weight=weight)
    index = build_index(edits, encoder, states, background, hparams)

    kind, sizes = GENERATORS[hparams.generator], (encoder.dimension, spec.size, len(edits))
    generated = run(
        "generator",
        [settings("generator", "diffusion"), tuned.key, neurons_key],
        lambda: _fit_generator(
            kind.build(hparams, *sizes).to(model.device),
            *(encoder, index.anchors.float(), collection, pseudo, hparams, processes),
        ),
        together=True,
    )
    hparams = kind.settled(hparams, generated.tensors)
    generator = kind.build(hparams, *sizes).to(model.device)
    generator.load_state_dict(generated.tensors)
    edited = MeGModel(model, tokenizer, hparams, spec, encoder, gate, generator, index, edits)
    edited.fitted = report
    return edited, report


def _tune(encoder: TextEncoder, pseudo: Sequence[EditRequest], hparams: MeGHyperParams) -> Tensors:
    tune_encoder(
        encoder,
        pseudo,
        objective=hparams.encoder_tuning,
        tuned_layers=hparams.encoder_tuned_layers,
        hard_negatives=hparams.encoder_hard_negatives,
        steps=hparams.encoder_steps,
        batch_size=hparams.encoder_batch_size,
        lr=hparams.encoder_lr,
        temperature=hparams.encoder_temperature,
        seed=hparams.seed,
    )
    return encoder.state_dict()


def _fit_gate(
    gate: Gate, anchors: Tensor, rehearsal: Callable[[], Calibration], hparams: MeGHyperParams
) -> Tensors:
    sweep: Tensors = {}
    if hparams.gate_threshold is None:
        found = rehearsal()
        gate.threshold.fill_(found.threshold)
        sweep = found.to_tensors()
    gate.fit(anchors, hparams.seed)
    return {**sweep, **{f"gate.{name}": value for name, value in gate.state_dict().items()}}


def _fit_generator(
    generator: WeightGenerator,
    encoder: TextEncoder,
    anchors: Tensor,
    collection: Collection,
    pseudo: Sequence[EditRequest],
    hparams: MeGHyperParams,
    processes: Processes,
) -> Tensors:
    irrelevant = None
    if hparams.generator_zero_augmentation:
        irrelevant = encoder.encode([fact.prompt for fact in pseudo])
    neurons = collection.neurons.to(anchors.device)
    generator.fit(anchors, neurons, irrelevant, hparams.seed, processes)
    return generator.state_dict()


def _texts(facts: Sequence[EditRequest]) -> list[list[Any]]:
    return [[f.prompt, f.target_new, f.subject, f.rephrases, f.locality_prompts] for f in facts]


def _check_weights(model: Any) -> None:
    if isinstance(model, MeGModel):
        raise ValueError("expected an unedited model, got a MeGModel: pass its .base")
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in present_parameters(model, names):
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"the model's weight {name} holds NaN or infinity: load it again")


def _check_lengths(
    model: Any, tokenizer: Any, edits: Sequence[EditRequest], hparams: MeGHyperParams
) -> None:
    context = getattr(model.config, "max_position_embeddings", None) or hparams.max_length
    limit = min(hparams.max_length, context)
    reader = PromptReader(tokenizer, hparams.prompt_template)
    for row, edit in enumerate(edits):
        length = len(encode_example(tokenizer, reader.wrap(edit.prompt), edit.target_new))
        if length > limit:
            raise RequestError(
                f"request {row} ({edit.prompt[:40]!r}...): prompt and target take {length} tokens, "
                f"more than {limit} (the lesser of max_length {hparams.max_length} and the model's "
                f"context {context}); shorten it or raise max_length"
            )


def _already_answered(
    model: Any, tokenizer: Any, edits: Sequence[EditRequest], hparams: MeGHyperParams
) -> list[str]:
    """Prompts whose target is what the model says anyway: allowed, but worth knowing."""
    reader = PromptReader(tokenizer, hparams.prompt_template)
    prompts = [reader.wrap(edit.prompt) for edit in edits]
    answers = batched_answers(model, tokenizer, prompts, max_target_length(tokenizer, edits))
    return [
        edit.prompt
        for edit, answer in zip(edits, answers, strict=True)
        if answer == edit.target_new
    ]
