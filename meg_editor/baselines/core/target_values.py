"""Target outputs of a module at the subject, with which the model gives the target (MEMIT, eq. 16).

Facts are independent and optimised together: each has separate rows and Adam moments, and is
evicted once it has converged. Only the blocks from the module's layer on are run, and only on the
tokens from the lookup token on, since those before do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from meg_editor.baselines.core.activations import first
from meg_editor.baselines.core.fact_tokens import FactTokens
from meg_editor.baselines.core.split_rows import SplitRows
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import decoder_blocks, text_config
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import by_length, logits_of, means
from meg_editor.runtime.progress import progress_bar

_EARLY_STOP_LOSS = 0.05  # a fact has converged below this loss


@dataclass(frozen=True)
class ValueSettings:
    """How values are optimised.

    Attributes:
        lr, steps: of Adam.
        decay: weight of |shift| / |value|².
        clamp: maximum norm of a shift, in norms of the value; None: unlimited.
        kl: weight of the divergence on "{subject} is a".
        nll: weight of the target's negative log-likelihood.
        relax: once the target is the likeliest answer its weight is a tenth, and a fact ends where
            the divergence is small too (PMET's code).
        early_stop: a fact is evicted once its loss is small.
    """

    lr: float
    steps: int
    decay: float = 0.0
    clamp: float | None = None
    kl: float = 0.0
    nll: float = 1.0
    relax: bool = False
    early_stop: bool = True


@dataclass(frozen=True)
class TargetValues:
    """For each module by name, of N facts.

    Attributes:
        before: (N, D) what leaves it at the bare prompt's lookup token.
        shift: (N, D) what is to be added.
        probability: (N,) of the target after that, the geometric mean over its tokens and rows.
    """

    before: dict[str, Tensor]
    shift: dict[str, Tensor]
    probability: Tensor

    def target(self, name: str) -> Tensor:
        """(N, D) the output which the module should have."""
        return self.before[name] + self.shift[name]


def optimise_values(
    model: CausalLM,
    facts: Sequence[FactTokens],
    layer: int,
    modules: Sequence[str],
    settings: ValueSettings,
    rows_at_once: int,
    start: Tensor | None = None,
) -> TargetValues:
    """Find shifts of what leaves `modules` of block `layer` at the lookup token of each fact.

    Args:
        modules: dotted names; their shifts are optimised jointly.
        start: (N, D) the shifts to begin with; zero by default.
    """
    if any(fact.essence is None for fact in facts):
        facts = [replace(fact, essence=None) for fact in facts]
    size = (len(facts), text_config(model).hidden_size)
    before = {name: torch.zeros(size) for name in modules}
    shift = {name: torch.zeros(size) for name in modules}
    probability = torch.zeros(len(facts))
    tails = [fact.longest_tail for fact in facts]
    rows_each = len(facts[0].rows) + (facts[0].essence is not None)
    with progress_bar(range(len(facts)), "values", "fact") as bar:
        for chunk in by_length(tails, max(1, rows_at_once // rows_each)):
            rows = torch.tensor(chunk)
            optimiser = _ValueOptimiser(model, [facts[i] for i in chunk], layer, modules, settings)
            if start is not None:
                optimiser.shift += start[rows].to(optimiser.shift)
            optimiser.run()
            for place, name in enumerate(modules):
                before[name][rows] = optimiser.before[place].float().cpu()
                shift[name][rows] = optimiser.latest[place].float().cpu()
            probability[rows] = optimiser.probability.cpu()
            bar.update(len(chunk))
    device = input_device(model)
    return TargetValues(
        {name: value.to(device) for name, value in before.items()},
        {name: value.to(device) for name, value in shift.items()},
        probability,
    )


class _ValueOptimiser:
    """Adam on the shifts (modules, M, D) of M facts."""

    def __init__(
        self,
        model: CausalLM,
        facts: Sequence[FactTokens],
        layer: int,
        modules: Sequence[str],
        settings: ValueSettings,
    ) -> None:
        self.model, self.settings = model, settings
        name, blocks = decoder_blocks(model)
        # What leaves a block enters the next one: it need not be run itself.
        self.entering = list(modules) == [f"{name}.{layer}"] and layer + 1 < len(blocks)
        layer += self.entering
        self.places = [model.get_submodule(name) for name in modules]
        self.rows = _Rows(model, layer, facts)
        size = text_config(model).hidden_size
        self.shift = torch.zeros(len(modules), len(facts), size, device=input_device(model))
        self.before = torch.zeros_like(self.shift)
        self.latest = self.shift.clone()
        self.probability = torch.zeros(len(facts))

    def run(self) -> None:
        """Optimise until every fact has converged, for at most `steps` evaluations."""
        s, rows = self.settings, self.rows
        active = torch.arange(len(self.probability), device=self.shift.device)
        shift = self.shift
        moments = torch.zeros(2, *shift.shape, device=shift.device)
        relaxed = torch.zeros(len(active), dtype=torch.bool, device=shift.device)
        essence: Tensor | None = None  # (M, V) log-probabilities before
        for step in range(s.steps):
            shift = shift.detach().requires_grad_(True)
            hidden = self._hidden(shift, first_time=step == 0)
            nll, likeliest, now = rows.losses(self.model, hidden)
            if essence is None:
                essence = now.detach()
            # KL(now || before): MEMIT's code has the two in this order
            divergence = (now.exp() * (now - essence)).sum(-1) if len(now) else 0 * nll
            weight = torch.where(relaxed, 0.1 * s.nll, s.nll)
            norms = (shift.norm(dim=-1) / self.before[:, active].norm(dim=-1) ** 2).sum(0)
            loss = weight * nll + s.kl * divergence + s.decay * norms
            done = torch.zeros_like(relaxed)
            if s.early_stop:
                done |= loss.detach() < _EARLY_STOP_LOSS
            if s.relax:
                done |= likeliest & (s.kl * divergence.detach() <= 0.01)
                relaxed = likeliest
            self.probability[active.cpu()] = (-nll.detach()).exp().float().cpu()
            self.latest[:, active] = shift.detach()
            if step + 1 == s.steps or bool(done.all()):
                return
            (gradient,) = torch.autograd.grad(loss.sum(), shift)
            shift = self._adam(shift.detach(), gradient, moments, step + 1)
            if s.clamp is not None:
                limit = s.clamp * self.before[:, active].norm(dim=-1, keepdim=True)
                norm = shift.norm(dim=-1, keepdim=True)
                shift = torch.where(norm > limit, shift * limit / norm, shift)
            if bool(done.any()):
                active_rows = ~done
                active, relaxed, essence = (
                    active[active_rows],
                    relaxed[active_rows],
                    essence[active_rows[: len(now)]],
                )
                shift, moments = shift[:, active_rows], moments[:, :, active_rows]
                rows.select(active_rows)

    def _adam(self, shift: Tensor, gradient: Tensor, moments: Tensor, step: int) -> Tensor:
        """A step of Adam with its usual settings: every fact has taken as many as any other."""
        moments[0].lerp_(gradient, 1 - 0.9)
        moments[1].lerp_(gradient**2, 1 - 0.999)
        mean, square = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
        return shift - self.settings.lr * mean / (square.sqrt() + 1e-8)

    def _hidden(self, shift: Tensor, first_time: bool) -> Tensor:
        """(R, S, D) last hidden states with the shifts added at the lookup tokens."""
        rows = self.rows

        def added(place: int, states: Tensor) -> Tensor:
            tails = states.reshape(*rows.split.ids.shape, -1)
            if first_time:
                self.before[place] = tails.detach()[rows.bare, 0]
            start = tails[:, :1] + shift[place][rows.fact].unsqueeze(1).to(tails)
            return torch.cat([start, tails[:, 1:]], dim=1).reshape(states.shape)

        if self.entering:
            return rows.split.hidden(lambda stream: added(0, stream))

        def leaving(place: int) -> Callable[..., Any]:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                tails = added(place, first(output))
                return (tails, *output[1:]) if isinstance(output, tuple) else tails

            return hook

        handles = [
            module.register_forward_hook(leaving(place)) for place, module in enumerate(self.places)
        ]
        try:
            return rows.split.hidden()
        finally:
            for handle in handles:
                handle.remove()


class _Rows:
    """The rows of M facts as one batch, cut at their lookup tokens: contexts, then the essence.

    Attributes:
        split: R rows.
        fact: (R,) the fact of each row.
        bare: (M,) the row of each fact's bare prompt.
    """

    def __init__(self, model: CausalLM, layer: int, facts: Sequence[FactTokens]) -> None:
        rows: list[list[int]] = []
        cuts: list[int] = []
        fact: list[int] = []
        labels, contexts = [], []
        for index, one in enumerate(facts):
            pairs = list(zip(one.rows, one.lookups, strict=True))
            for example, cut in pairs:
                rows.append(example.prompt + example.target[:-1])  # nothing comes after the last
                start = len(example.prompt) - cut
                labels.append(torch.tensor([-100] * (start - 1) + example.target))
                cuts.append(cut)
            if one.essence is not None:
                rows.append(one.essence.prompt)
                labels.append(torch.full((len(one.essence) - one.essence_lookup,), -100))
                cuts.append(one.essence_lookup)
            fact += [index] * (len(rows) - len(fact))
            contexts += [True] * len(pairs) + [False] * (one.essence is not None)
        device = input_device(model)
        self.split = SplitRows(model, layer, rows, cuts)
        self.labels = pad_sequence(labels, batch_first=True, padding_value=-100).to(device)
        self.fact = torch.tensor(fact, device=device)
        self.is_context = torch.tensor(contexts, device=device)

    @property
    def bare(self) -> Tensor:
        """(M,) the row of each fact's bare prompt, its first."""
        return torch.searchsorted(self.fact, self.fact.unique())

    def select(self, keep: Tensor) -> None:
        """Keep only the facts marked in (M,) bool."""
        rows = keep[self.fact]
        self.split.select(rows)
        self.labels, self.is_context = self.labels[rows], self.is_context[rows]
        self.fact = (keep.cumsum(0) - 1)[self.fact[rows]]

    def losses(self, model: CausalLM, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the last hidden states (R, S, D), for M facts.

        Returns:
            (M,) negative log-likelihood of the target, the mean over its tokens and over contexts;
            (M,) bool, whether the target is the likeliest in all of them; (M, V) log-probabilities
            at the essence's lookup token, (0, V) without essences.
        """
        labelled = self.labels != -100
        logp = logits_of(model, hidden[labelled]).log_softmax(-1)
        target, row = self.labels[labelled], labelled.nonzero()[:, 0]
        nll = F.nll_loss(logp, target, reduction="none")
        of_row = means(nll, row, len(self.fact))[self.is_context]
        count = int(self.fact[-1]) + 1
        wrong = means((logp.argmax(-1) != target).float(), self.fact[row], count)
        essence = logits_of(model, hidden[~self.is_context, 0]).log_softmax(-1)
        return means(of_row, self.fact[self.is_context], count), wrong == 0, essence
