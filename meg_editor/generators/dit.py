"""The diffusion transformer (DiT) over neurons (section 4.1 c.2, A.11.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.diffusion import Denoiser, Diffusion
from meg_editor.generators.trainer import LearnedGenerator
from meg_editor.runtime.randomness import seeded

_HEAD = 64  # width of an attention head


class DiTBlock(nn.Module):
    """Transformer block with self-attention and feed-forward, modulated by adaLN-Zero.

    Args:
        width: W, of the hidden states.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(width, num_embeddings=None)
        self.attention = Attention(width, heads=heads, dim_head=width // heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(width, activation_fn="gelu-approximate", dropout=dropout)
        # The "Zero" of adaLN-Zero: every block is initialised as the identity.
        nn.init.zeros_(self.norm1.linear.weight)
        nn.init.zeros_(self.norm1.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Hidden states (B, L, W) under the condition (B, W) -> (B, L, W)."""
        normed, gate1, shift, scale, gate2 = self.norm1(x, emb=condition)
        x = x + gate1.unsqueeze(1) * self.attention(normed)
        normed = self.norm2(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        x = x + gate2.unsqueeze(1) * self.feed_forward(normed)
        return x


class DiT(nn.Module):
    """Denoiser: a transformer over L = ⌈P / patch⌉ patches of a flat neuron.

    The condition z is added to the embedding of the time step (paper). With
    `generator_conditioning: patches` it is added to every patch too, by a projection for each,
    and training is many times faster.

    Args:
        dimension: E, of a query embedding.
        size: P, of a neuron.

    Example:
        >>> hparams = MeGHyperParams.preset("default", generator_width=64, generator_depth=1)
        >>> network = DiT(hparams, dimension=8, size=10)
        >>> network(torch.zeros(2, 10), torch.tensor([0, 999]), torch.zeros(2, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__()
        h, width = hparams, hparams.generator_width
        heads = max(1, width // _HEAD)
        self.dimension, self.size, self.patch = dimension, size, h.generator_patch_size
        self.tokens = math.ceil(size / self.patch)
        self.embed = nn.Linear(self.patch, width)
        self.position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        self.frequencies = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(256, width)
        self.condition = nn.Sequential(
            nn.Linear(dimension, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.per_patch: nn.Module | None = None
        if h.generator_conditioning == "patches":
            self.per_patch = nn.Sequential(
                nn.Linear(dimension, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, self.tokens * width),
                nn.Unflatten(1, (self.tokens, width)),
            )
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, h.generator_dropout) for _ in range(h.generator_depth)
        )
        self.norm = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.head = nn.Linear(width, self.patch)
        for layer in (self.norm.linear, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Noisy neurons (B, P), time steps (B,), query embeddings z (B, E) -> prediction (B, P)."""
        hidden = self.embed(self._patches(x)) + self.position
        # Coordinates of unit vectors are near 1/√E; scaled to be near 1.
        z = condition * math.sqrt(self.dimension)
        if self.per_patch is not None:
            hidden = hidden + self.per_patch(z)
        z = self.condition(z)
        signal = self.time(self.frequencies(t).to(z.dtype)) + z
        for block in self.blocks:
            hidden = block(hidden, signal)
        values: Tensor = self.head(self.norm(hidden, signal)).flatten(1)[:, : self.size]
        return values

    def _patches(self, values: Tensor) -> Tensor:
        padded = F.pad(values, (0, self.tokens * self.patch - values.shape[1]))
        return padded.view(len(values), self.tokens, self.patch)


class DiTGenerator(LearnedGenerator):
    """DiT with diffusion: neurons by deterministic denoising in any number of steps.

    Args:
        hparams: the `generator_*` and `diffusion_*` settings.
        dimension: E, of a query embedding.
        size: P, of a neuron.

    Example:
        >>> hparams = MeGHyperParams.preset("default", generator_width=64, generator_depth=1)
        >>> generator = DiTGenerator(hparams, dimension=8, size=10)
        >>> generator.generate(torch.zeros(2, 8), steps=2).shape
        torch.Size([2, 10])
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__(hparams, dimension, size)
        self.network = DiT(hparams, dimension, size)
        self.diffusion = Diffusion(hparams.diffusion_prediction)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(hparams.seed))
        self.start: Tensor
        self.register_buffer("start", noise)
        self.compile_network = False
        self._compiled: Denoiser | None = None  # a function: a module would enter the state dict
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """A copy compiles its own network."""
        return {**self.__dict__, "_compiled": None}

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> DiTGenerator:
        with seeded(hparams.seed):
            return cls(hparams, dimension, size)

    def draw(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.diffusion.draw(targets, generator)

    def loss(self, conditions: Tensor, targets: Tensor, *drawn: Tensor) -> Tensor:
        noise, t = drawn
        return self.diffusion.loss(self.network, targets, conditions, noise, t)

    @torch.no_grad()
    def predict(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        denoiser: Denoiser = self.network
        if self.compile_network:
            if self._compiled is None:
                self._compiled = torch.compile(self.network.forward, mode="reduce-overhead")
            denoiser = self._compiled
        steps = steps or self.hparams.sampling_steps
        return self.diffusion.sample(denoiser, conditions, self.start, steps)
