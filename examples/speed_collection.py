"""Parts of speed.py: models of a shape, what a machine reaches, and collection the plain way."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.autograd import grad
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from meg_editor import MeGHyperParams
from meg_editor.collection.collect import Collection, answers_with, shared_start
from meg_editor.collection.contexts import fact_contexts
from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import Batch, Example, encode_example, logits_of
from meg_editor.requests.request import EditRequest

_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Public configs: the layer of the neuron (the paper's, else 3/4 up), family, sizes (_KEYS), others.
SHAPES: dict[str, tuple[int, str, tuple[int, int, int, int], dict[str, Any]]] = {
    "phi-2": (29, "phi", (51200, 2560, 32, 32), {"intermediate_size": 10240}),
    "gpt-j-6b": (9, "gptj", (50400, 4096, 28, 16), {}),
    "llama-3-8b": (
        *(14, "llama", (128256, 4096, 32, 32)),
        {"intermediate_size": 14336, "num_key_value_heads": 8},
    ),
    "gpt2-medium": (18, "gpt2", (50257, 1024, 24, 16), {}),
    "small-24": (18, "llama", (4096, 256, 24, 4), {"intermediate_size": 768}),
}
PARTS = ("blocks below, once", "blocks forward", "head forward", "head backward", "blocks backward")
Facts = Sequence[Sequence[Example]]  # each in its contexts


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model and the facts to edit."""

    model: Any
    tokenizer: Any
    hparams: MeGHyperParams
    edits: Sequence[EditRequest]
    activation: str | None = None  # of the neuron; None: the FFN's own

    @property
    def spec(self) -> NeuronSpec:
        spec = NeuronSpec.from_hparams(self.model, self.hparams)
        return dataclasses.replace(spec, activation=self.activation or spec.activation)

    def facts(self) -> Facts:
        """Each fact in the contexts `collect` fits it in."""
        h, prompts = self.hparams, [edit.prompt for edit in self.edits]
        drawn = fact_contexts(
            self.tokenizer, prompts, h.collection_contexts, h.prompt_template, h.seed
        )
        return [
            [encode_example(self.tokenizer, text, edit.target_new) for text in texts]
            for edit, texts in zip(self.edits, drawn, strict=True)
        ]


def random_model(shape: str, device: str, dtype: torch.dtype) -> Any:
    """A model of that shape; its logits spread by 3, so that it prefers some tokens by far."""
    _, family, sizes, others = SHAPES[shape]
    settings = {**dict(zip(_KEYS, sizes, strict=True)), **others}
    config = AutoConfig.for_model(family, **settings, initializer_range=sizes[1] ** -0.5)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    with torch.device(device):
        build: Any = AutoModelForCausalLM.from_config
        model = build(config, dtype=dtype)
    model.get_output_embeddings().weight.data *= 3
    return model.eval().requires_grad_(False)


def random_rate(model: Any) -> float:
    """0.003 times the mean square of what enters the last block: v must grow with it.

    With it every family learned all facts: as wide as here with 3 to 24 blocks, at 256 with 32.
    """
    ids = torch.arange(16, device=model.device)[None]
    stream = model(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    return 0.003 * float(stream.float().square().mean())


def clock(device: Any) -> float:
    """Seconds, after the GPU has finished; CPU time of this process where it has one thread."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()  # what other jobs take of the processor does not count
    return time.perf_counter()


def milliseconds(device: Any, run: Callable[[], Any]) -> float:
    """The median of five runs or as many as take 0.3 s, after one which does not count."""
    run()
    marks = [clock(device)]
    while len(marks) < 6 or marks[-1] - marks[0] < 0.3:
        run()
        marks.append(clock(device))
    return 1000 * median(end - start for start, end in itertools.pairwise(marks))


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the machine reaches, per millisecond: bytes of a big copy, operations of a product."""

    moved: float
    rate: float  # in the model's precision
    rate32: float  # in float32, the generator's

    @classmethod
    def of(cls, model: Any) -> Machine:
        timed = partial(milliseconds, model.device)
        side, size = (1024, 2**27) if model.device.type == "cpu" else (8192, 2**31)
        big = torch.ones(size, dtype=torch.uint8, device=model.device)
        copy = partial(torch.empty_like(big).copy_, big)
        squares = [
            big[:1].to(kind).expand(side, side).clone() for kind in (model.dtype, torch.float)
        ]
        rates = (2 * side**3 / timed(partial(torch.mm, a, a)) for a in squares)
        return cls(2 * size / timed(copy), *rates)


def operations(model: Any, layer: int, fact: Sequence[Example], whole: bool) -> dict[str, int]:
    """Of one step of a fact, part by part: two per weight and token.

    Gradients go to activations only, no further than the neuron. Norms, attention maps and the
    neuron itself are not counted. The whole model computes the logits of all tokens.
    """
    blocks = decoder_blocks(model)[1]
    sizes = [sum(p.numel() for p in block.parameters() if p.dim() > 1) for block in blocks]
    twice = 2 * sum(map(len, fact))
    heads = twice if whole else 2 * sum(len(row.target) for row in fact)
    head = heads * model.get_output_embeddings().weight.numel()
    below, above = twice * sum(sizes[:layer]), twice * sum(sizes[layer + 1 :])
    return dict(zip(PARTS, (below, twice * sizes[layer] + above, head, head, above), strict=True))


def collect_plainly(setup: Setup, facts: Facts, edits: Sequence[EditRequest]) -> Collection:
    """What `collect` finds without retries, all facts in one batch, steps through the whole model.

    Start, loss, SGD at a constant rate and the end of a fact are those of `collect`.
    """
    model, h = setup.model, setup.hparams
    start = shared_start(setup.spec, h.seed).to(model.device)
    neurons, taken = start.repeat(len(facts), 1), torch.zeros(len(facts), dtype=torch.long)
    active, batch = list(range(len(facts))), None
    with NeuronHook(model, setup.spec) as hook:
        for _ in range(h.collection_steps):
            batch = batch or Batch.of([row for f in active for row in facts[f]], model.device)
            current = neurons[active].requires_grad_(True)
            with hook.attached(current.repeat_interleave(len(facts[0]), dim=0)):
                logits = model(input_ids=batch.ids, use_cache=False).logits.float()
            is_target = batch.labels != -100
            loss = cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
            loss = (loss.sum(1) / is_target.sum(1)).reshape(len(active), -1).mean(1)
            (gradient,) = grad(loss.sum(), current)
            wrong = (
                (is_target & (logits.argmax(-1) != batch.labels)).reshape(len(active), -1).any(1)
            )
            going = (wrong | (loss >= h.collection_loss_threshold)).nonzero().flatten().tolist()
            if len(going) < len(active):
                active, batch = [active[place] for place in going], None
            if not active:
                break
            neurons[active] -= h.collection_lr * gradient[going]
            taken[active] += 1
    # A fact that ran out of steps may have been learned all the same: compare the answers.
    length = max(len(row.target) for fact in facts for row in fact)
    prompts = [edits[fact].prompt for fact in active]
    answers = answers_with(model, setup.tokenizer, setup.spec, neurons[active], prompts, length)
    success = torch.ones(len(facts), dtype=torch.bool)
    for fact, answer in zip(active, answers, strict=True):
        success[fact] = answer == edits[fact].target_new
    return Collection(neurons.cpu(), success, taken)


def parts_of_a_step(setup: Setup, facts: Facts) -> dict[str, float]:
    """Milliseconds per token of each part of a batched step; facts of like length are best."""
    model, spec, timed = setup.model, setup.spec, partial(milliseconds, setup.model.device)
    batch = Batch.of([row for fact in facts for row in fact], model.device)
    upper, is_target = LayersFrom(model, spec.layer), batch.labels != -100
    neurons = shared_start(spec, 0).repeat(len(facts), 1).to(model.device).requires_grad_(True)
    run = partial(model.get_decoder(), input_ids=batch.ids, use_cache=False)
    below, stream = partial(upper.residual_stream, batch.ids), upper.residual_stream(batch.ids)
    attached = neurons.repeat_interleave(len(facts[0]), dim=0)
    with NeuronHook(model, spec) as hook, hook.attached(attached), upper.injected(stream):
        hidden, forward = run().last_hidden_state, timed(run)

    def head() -> torch.Tensor:
        return cross_entropy(logits_of(model, hidden[is_target]), batch.labels[is_target])

    loss = head()
    (back,) = grad(loss, hidden, retain_graph=True)
    times = (
        timed(below),
        forward,
        timed(head),
        timed(lambda: grad(loss, hidden, retain_graph=True)),
        timed(lambda: grad(hidden, neurons, back, retain_graph=True)),
    )
    return {part: taken / batch.ids.numel() for part, taken in zip(PARTS, times, strict=True)}
