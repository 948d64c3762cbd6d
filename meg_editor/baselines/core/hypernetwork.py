"""The hypernetwork of MALMEN and RLEdit: from keys and gradients to shifts of weights.

Linear layers of one shape share a network; each has separate scales, shifts, rate and penalty (Tan
et al., ICLR 2024, section 4).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from meg_editor.baselines.core.settings import FittingHyperParams
from meg_editor.baselines.core.token_gradients import (
    NormalEquation,
    TokenGradientHyperParams,
    TokenGradients,
    TokenStatistics,
    shape_of,
)
from meg_editor.config.settings import setting
from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM


class Shift(NamedTuple):
    """An (inputs, outputs) shift of a linear layer in float64, and the equation it solves."""

    value: Tensor
    equation: NormalEquation


class ResidualBlock(nn.Module):
    """x + s·max(x A B + bias, 0) + t of low rank, with s and t for each layer (section 4.1).

    It starts as the identity: B is zero.
    """

    def __init__(self, size: int, rank: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(size, rank, generator=generator))
        self.up = nn.Parameter(torch.zeros(rank, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(layers, size))
        self.shift = nn.Parameter(torch.zeros(layers, size))

    def forward(self, x: Tensor, layer: int) -> Tensor:
        # Not relu: at the zeros it starts with, that passes no gradient, and nothing is learnt.
        inner = (x @ self.down @ self.up + self.bias).clamp(min=0)
        return x + self.scale[layer] * inner + self.shift[layer]


class ShapeNetwork(nn.Module):
    """The network of the linear layers of one shape."""

    def __init__(
        self,
        shape: tuple[int, int],
        layers: int,
        rank: int,
        blocks: int,
        lr: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.statistics = TokenStatistics(sum(shape))
        self.blocks = nn.ModuleList(
            ResidualBlock(sum(shape), rank, layers, generator) for _ in range(blocks)
        )
        self.rate = nn.Parameter(torch.full((layers,), lr))
        self.log_penalty = nn.Parameter(torch.zeros(layers))

    def forward(self, keys: Tensor, gradients: Tensor, layer: int) -> Tensor:
        """(N, outputs) target changes of the output of `layer`, from N keys and gradients.

        They are -η (k·k̃) g̃, k̃ and g̃ being what the blocks make of the normalised pair.
        """
        pair = torch.cat([keys, gradients], 1)
        x = self.statistics.normalised(pair).to(self.rate.dtype)
        for block in self.blocks:
            x = block(x, layer)
        pseudo_keys, pseudo_gradients = x.split(self.shape, 1)
        strength = (keys.to(x.dtype) * pseudo_keys).sum(1, keepdim=True)
        changes: Tensor = -self.rate[layer] * strength * pseudo_gradients
        return changes


class HyperNetwork(nn.Module):
    """The networks of all edited layers of a model.

    Args:
        shapes: (inputs, outputs) of each layer by name.
        rank, blocks: of and in each network.
        lr: the first value of each layer's rate η.
        rows: tokens at a time; the results are the same.
        seed: of the first weights.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        rank: int,
        blocks: int,
        lr: float,
        rows: int,
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = rows
        counts: Counter[tuple[int, int]] = Counter()
        self.places: dict[str, tuple[str, int]] = {}
        for name, shape in shapes.items():
            self.places[name] = (_key(shape), counts[shape])
            counts[shape] += 1
        self.networks = nn.ModuleDict(
            {
                _key(shape): ShapeNetwork(shape, layers, rank, blocks, lr, generator)
                for shape, layers in counts.items()
            }
        )

    @classmethod
    def of(
        cls,
        model: CausalLM,
        names: list[str],
        rank: int,
        blocks: int,
        lr: float,
        rows: int,
        seed: int,
    ) -> HyperNetwork:
        """For the named linear layers of a model, on its device."""
        shapes = {name: shape_of(model, name) for name in names}
        return cls(shapes, rank, blocks, lr, rows, seed).to(input_device(model))

    def observe(self, at_tokens: dict[str, TokenGradients]) -> None:
        """Take keys and gradients into the statistics by which they are normalised."""
        for name, parts in at_tokens.items():
            network, _ = self._network(name)
            for keys, gradients in parts.chunks(self.rows):
                network.statistics.update(torch.cat([keys, gradients], 1))

    @torch.no_grad()
    def shifts(self, at_tokens: dict[str, TokenGradients]) -> dict[str, Shift]:
        """The shift of each layer: (KᵀK + λI)⁻¹ KᵀV, V the target changes (section 4.1)."""
        shifts = {}
        for name, parts in at_tokens.items():
            network, layer = self._network(name)
            right = torch.zeros(network.shape, dtype=torch.float64, device=parts.keys.device)
            for keys, gradients in parts.chunks(self.rows):
                changes = network(*_on(network, keys, gradients), layer)
                right.addmm_(keys.double().T, changes.to(right))
            penalty = float(network.log_penalty[layer].exp())
            equation = NormalEquation(parts.keys, penalty, self.rows)
            shifts[name] = Shift(equation.solve(right), equation)
        return shifts

    def backpropagate(
        self,
        at_tokens: dict[str, TokenGradients],
        shifts: dict[str, Shift],
        gradients: dict[str, Tensor],
    ) -> None:
        """Add gradients of a loss to those of the parameters, in closed form (section 4.2).

        Args:
            shifts: as `shifts(at_tokens)` gave them.
            gradients: of the loss with respect to each layer's shift, (inputs, outputs).
        """
        for name, parts in at_tokens.items():
            network, layer = self._network(name)
            shift, equation = shifts[name]
            solved = equation.solve(gradients[name])  # (KᵀK + λI)⁻¹ ∂L/∂S
            with torch.no_grad():
                slope = -network.log_penalty[layer].double().exp() * (solved * shift).sum().to(
                    network.log_penalty.device
                )
            (slope.float() * network.log_penalty[layer]).backward()
            for keys, values in parts.chunks(self.rows):
                changes = network(*_on(network, keys, values), layer)
                changes.backward((keys.double() @ solved).to(changes))

    def _network(self, name: str) -> tuple[ShapeNetwork, int]:
        key, layer = self.places[name]
        return cast(ShapeNetwork, self.networks[key]), layer


@dataclass
class HyperNetworkHyperParams(TokenGradientHyperParams, FittingHyperParams):
    """Of methods whose hypernetwork is trained on facts which are not edited.

    `batch_size_once` is the authors' `data.batch_size`, `editor_batch_size` their
    `editor.batch_size`.
    """

    token: Literal["ans", "mask"] = setting(
        "ans", "ans: where a target token comes next; mask: every token of prompt and target."
    )
    batch_size_once: int = setting(32, "Edits per forward and backward pass.", ge=1, lt=2**20)
    rank: int = setting(1920, "Rank of each block of the hypernetwork.", ge=1, lt=2**17)
    n_blocks: int = setting(2, "Blocks of the hypernetwork.", ge=0, lt=1000)
    lr: float = setting(1e-6, "First value of the hypernetwork's rates.", ge=0)
    meta_lr: float = setting(1e-5, "Rate of Adam when the hypernetwork is trained.", ge=0)
    loc_coef: float = setting(1.0, "Weight of the locality loss.", ge=0)
    max_grad_norm: float = setting(1.0, "The hypernetwork's gradients are clipped to it.", ge=0)
    n_edits: int = setting(
        512, "Maximum number of pseudo facts edited in a training step.", ge=1, lt=2**24
    )

    def network(self, model: CausalLM) -> HyperNetwork:
        """An untrained hypernetwork for a model."""
        return HyperNetwork.of(
            model,
            self.linear_layers(model),
            self.rank,
            self.n_blocks,
            self.lr,
            self.editor_batch_size,
            self.seed,
        )


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _on(network: ShapeNetwork, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(network.rate.device) for tensor in tensors)
