"""Keys and gradients of linear layers at tokens, from which UltraEdit and MALMEN compute updates.

The gradient of a loss with respect to the weight of a linear layer is a sum over tokens of outer
products: of what enters the layer there (the key) and the gradient with respect to what leaves it
(MALMEN, section 3). Both methods change each token's part and put the parts together again by a
normal equation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.baselines.core.settings import WriteHyperParams
from meg_editor.baselines.core.weights import check_writable, oriented
from meg_editor.config.settings import setting
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import find_ffn
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example, target_logits

_EPSILON = torch.finfo(torch.float32).eps  # added to standard deviations, as in the references


@dataclass
class TokenGradientHyperParams(WriteHyperParams):
    """Of methods which make updates of keys and gradients.

    `batch_size_once` is not about memory alone: the loss is the mean over all target tokens of
    such a batch of edits, in the order of the requests, so that a batch with fewer target tokens
    has larger gradients.
    """

    ignored: ClassVar[tuple[str, ...]] = (
        "half",
        "model_class",
        "class_name",
        "tokenizer_class",
        "tokenizer_name",
        "dropout",
        "no_grad_layers",
        "silent",
        "results_dir",
    )

    inner_params: list[str] = setting(
        [], "Linear layers by name; empty: rewrite_module_tmp, else all of the FFNs of `layers`."
    )
    token: Literal["ans", "mask"] = setting(
        "mask", "ans: where a target token comes next; mask: every token of prompt and target."
    )
    batch_size_once: int = setting(10, "Edits per forward and backward pass.", ge=1, lt=2**20)
    editor_batch_size: int = setting(
        1024, "Tokens computed with at once; the results are the same.", ge=1
    )

    def linear_layers(self, model: CausalLM) -> list[str]:
        """The dotted names of the layers which are edited.

        Raises:
            ValueError: a layer does not exist, is not a linear layer of the decoder, or is named
                twice.
        """
        names = [name.removesuffix(".weight") for name in self.inner_params]
        if not names and self.rewrite_module_tmp is not None:
            names = self.down_projections(model)
        if not names:
            ffns = [find_ffn(model, layer) for layer in self.layers_of(model)]
            names = [name for ffn in ffns for name in (*ffn.ups, ffn.down)]
        inside = set(model.get_decoder().modules())
        modules = {name: module for name, module in model.named_modules() if module in inside}
        for name in names:
            weight = getattr(modules.get(name), "weight", None)
            if names.count(name) > 1:
                raise ValueError(f"inner_params: {name!r} is named twice")
            if weight is None or weight.dim() != 2 or isinstance(modules[name], nn.Embedding):
                raise ValueError(
                    f"inner_params: {name!r} is not a linear layer of the decoder; one is "
                    f"{find_ffn(model, self.layers_of(model)[0]).down!r}"
                )
        check_writable(model, [f"{name}.weight" for name in names])
        return names


class TokenGradients(NamedTuple):
    """Of one linear layer at N tokens, on its device and in its precision.

    Attributes:
        keys: (N, inputs) what enters it.
        gradients: (N, outputs) of the loss with respect to what leaves it.
    """

    keys: Tensor
    gradients: Tensor

    def chunks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and gradients of at most `rows` tokens at a time."""
        yield from zip(self.keys.split(rows), self.gradients.split(rows), strict=True)


def token_gradients(
    model: CausalLM,
    examples: Sequence[Example],
    modules: Sequence[str],
    token: Literal["ans", "mask"],
    batch_size: int,
) -> dict[str, TokenGradients]:
    """Keys and gradients of each named module, examples and their tokens in order.

    The loss is the cross entropy of the targets, the mean over all target tokens of each batch of
    `batch_size` examples (not the mean over facts), as in the authors' code of both methods.

    Args:
        examples: with at least one target token in each batch.
        modules: linear layers of the decoder.
        token: `ans` for the tokens at which a target token comes next, of which the last one of
            the prompt is the first; `mask` for all tokens, even the last one of the target, at
            which there is no gradient.
    """
    device = input_device(model)
    parts_of: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        batch = Batch.of(chunk, device)
        with _probed(model, modules) as (inputs, probes):
            loss = mean_cross_entropy(model, batch)
            gradients = torch.autograd.grad(loss, [probes[name] for name in modules])
        if token == "ans":
            chosen = batch.labels != -100
        else:
            lengths = torch.tensor([len(example) for example in chunk], device=device)
            chosen = torch.arange(batch.ids.shape[1], device=device) < lengths[:, None]
        for name, gradient in zip(modules, gradients, strict=True):
            rows = chosen.flatten().to(gradient.device)
            pair = (tensor.flatten(0, -2)[rows] for tensor in (inputs[name], gradient))
            parts_of[name].append((next(pair), next(pair)))
    return {
        name: TokenGradients(*(torch.cat(side) for side in zip(*parts, strict=True)))
        for name, parts in parts_of.items()
    }


def mean_cross_entropy(model: CausalLM, batch: Batch) -> Tensor:
    """The cross entropy of the targets of a batch, the mean over all its target tokens."""
    logits, targets, _ = target_logits(model, batch)
    return F.cross_entropy(logits, targets)


@contextmanager
def _probed(
    model: CausalLM, modules: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Keeps what enters modules, and zeros which are added to what leaves them.

    The gradient with respect to the zeros is that with respect to the output; no parameter needs
    one for it.
    """
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            inputs[name] = args[0].detach()
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in modules]
    try:
        yield inputs, probes
    finally:
        for handle in handles:
            handle.remove()


class TokenStatistics(nn.Module):
    """Mean and standard deviation of vectors which come in batches, in float64.

    They do not depend on how the vectors are split into batches. (The running normaliser of the
    references adds n times the unbiased variance of n vectors instead of n - 1 times, so that its
    standard deviation is too large by a factor of about 1 + 1 / 2n.)
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor  # the sum of squared deviations from the mean
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Take in (N, size) vectors."""
        wide = vectors.to(self.mean)
        mean = wide.mean(0)
        count, delta = self.count + len(wide), mean - self.mean
        self.squares += (wide - mean).square().sum(0)
        self.squares += delta.square() * self.count * len(wide) / count
        self.mean += delta * len(wide) / count
        self.count.copy_(count)

    @property
    def deviation(self) -> Tensor:
        """(size,) the unbiased standard deviation; 0 of fewer than two vectors."""
        return (self.squares / (self.count - 1).clamp(min=1)).sqrt()

    def normalised(self, vectors: Tensor) -> Tensor:
        """(N, size) vectors less the mean, over the standard deviation, in float64."""
        centred = vectors.to(self.mean) - self.mean
        return (centred / (self.deviation + _EPSILON)).to(vectors.device)


class NormalEquation:
    """Systems (KᵀK + c·I) X = Y, in float64.

    With Y = KᵀV, X is the shift which gives the keys the values V in the least-squares sense,
    with c times its squared norm as penalty (MALMEN, section 4.1).

    Args:
        keys: K, (N, inputs).
        penalty: c > 0.
        rows: tokens at a time, for the memory's sake.
    """

    def __init__(self, keys: Tensor, penalty: float, rows: int) -> None:
        gram = penalty * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
        for chunk in keys.split(rows):
            wide = chunk.double()
            gram.addmm_(wide.T, wide)
        self._factor = torch.linalg.cholesky(gram)

    def solve(self, right: Tensor) -> Tensor:
        """(inputs, M) X from (inputs, M) Y."""
        return torch.cholesky_solve(right.double(), self._factor)


def shape_of(model: CausalLM, name: str) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    outputs, inputs = oriented(model, name, model.get_parameter(f"{name}.weight")).shape
    return int(inputs), int(outputs)


def updates_of(model: CausalLM, shifts: dict[str, Tensor]) -> dict[str, Tensor]:
    """{parameter: its update} from (inputs, outputs) shifts of linear layers."""
    return {f"{name}.weight": oriented(model, name, shift.T) for name, shift in shifts.items()}
