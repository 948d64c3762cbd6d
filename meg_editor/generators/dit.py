"""The diffusion transformer which generates neurons (section 4.1 c.2, A.11.1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.diffusion import Denoiser, Diffusion
from meg_editor.generators.recall import Recall
from meg_editor.generators.trainer import LearnedGenerator, sample


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, modulated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(width, num_embeddings=None)
        self.attention = Attention(width, heads=heads, dim_head=width // heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(width, activation_fn="gelu-approximate", dropout=dropout)
        # The "Zero" of adaLN-Zero: every block begins as the identity.
        nn.init.zeros_(self.norm1.linear.weight)
        nn.init.zeros_(self.norm1.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, L, W) under (B, W) -> (B, L, W)."""
        normed, gate1, shift, scale, gate2 = self.norm1(x, emb=condition)
        x = x + gate1.unsqueeze(1) * self.attention(normed)
        normed = self.norm2(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        x = x + gate2.unsqueeze(1) * self.feed_forward(normed)
        return x


class DiT(nn.Module):
    """A transformer over L = ⌈P / patch⌉ patches of a flat neuron.

    The condition z is added to the embedding of the time step (the paper's way). With
    `generator_conditioning: patches` it is added to every patch too, by a projection for each, which
    learns neurons many times faster; with `recall`, the patches of a recalled neuron are.
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__()
        h, width = hparams, hparams.generator_width
        if width % h.generator_heads:
            raise ValueError(
                f"generator_width ({width}) must be a multiple of generator_heads "
                f"({h.generator_heads})"
            )
        self.dimension, self.size, self.patch = dimension, size, h.generator_patch_size
        self.tokens = math.ceil(size / self.patch)
        self.embed = nn.Linear(self.patch, width)
        self.position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        self.frequencies = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(256, width)
        self.condition = nn.Sequential(
            nn.Linear(dimension, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.recall: nn.Module | None = None
        self.recalled = h.conditioning == "recall"
        if self.recalled:
            self.recall = nn.Linear(self.patch, width)
        elif h.conditioning == "patches":
            self.recall = nn.Sequential(
                nn.Linear(dimension, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, self.tokens * width),
                nn.Unflatten(1, (self.tokens, width)),
            )
        self.blocks = nn.ModuleList(
            DiTBlock(width, h.generator_heads, h.generator_dropout)
            for _ in range(h.generator_depth)
        )
        self.norm = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.head = nn.Linear(width, self.patch)
        for layer in (self.norm.linear, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Noisy neurons (B, P), time steps (B,), conditions -> prediction (B, P).

        Conditions are z (B, E), with `recall` z and the recalled neuron (B, E + P).
        """
        hidden = self.embed(self._patches(x)) + self.position
        # Unit vectors have coordinates of 1/√E; the network likes them near 1.
        z = condition[:, : self.dimension] * math.sqrt(self.dimension)
        if self.recall is not None:
            recalled = condition[:, self.dimension :]
            hidden = hidden + self.recall(self._patches(recalled) if self.recalled else z)
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
    """Generates neurons by denoising, with any number of deterministic steps.

    With `generator_conditioning: recall` neurons are recalled first, and the rest is denoised, in
    units of its size; where nothing is left that a DiT could learn it is left out
    (`generator_refine`).
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> None:
        super().__init__(hparams, dimension, size)
        self.recall: Recall | None = None
        if hparams.conditioning == "recall":
            self.recall = Recall(dimension, size, edits, hparams.generator_features)
        self.network: DiT | None = None
        if hparams.generator_refine is not False:
            self.network = DiT(hparams, dimension, size)
        self.diffusion = Diffusion(hparams.diffusion_prediction, hparams.diffusion_train_timesteps)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(hparams.seed))
        self.start: Tensor
        self.rest: Tensor
        self.register_buffer("start", noise)
        self.register_buffer("rest", torch.ones(()))
        self._compiled: Denoiser | None = None  # a function, so that the state stays the network's
        self.eval()

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> DiTGenerator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hparams.seed)
            return cls(hparams, dimension, size, edits)

    @classmethod
    def settled(cls, hparams: MeGHyperParams, state: Mapping[str, Tensor]) -> MeGHyperParams:
        if hparams.conditioning != "recall":
            return hparams
        refined = any(name.startswith("network.") for name in state)
        return dataclasses.replace(hparams, generator_refine=refined)

    @property
    def optional(self) -> bool:
        return self.recall is not None and self.hparams.generator_refine is None

    def do_without(self) -> None:
        self.network = None

    def prepare(self, conditions: Tensor, targets: Tensor) -> None:
        if self.recall is not None:
            self.recall.solve(conditions, targets)
            some = sample(len(targets))
            rest = targets[some] - self.recall(conditions[some])
            self.rest.copy_(rest.square().mean().sqrt().clamp_min(1e-6))

    def draw(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.diffusion.draw(targets, generator)

    def loss(self, conditions: Tensor, targets: Tensor, *drawn: Tensor) -> Tensor:
        noise, t = drawn
        conditions, recalled = self._recalled(conditions)
        rest = (targets - recalled) / self.rest
        return self.diffusion.loss(self._denoiser, rest, conditions, noise, t)

    @torch.no_grad()
    def predict(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        conditions, recalled = self._recalled(conditions)
        if self.network is None:
            return recalled
        denoiser = self._denoiser
        if self.hparams.generator_compile:
            if self._compiled is None:
                self._compiled = torch.compile(self.network.forward, mode="reduce-overhead")
            denoiser = self._compiled
        steps = steps or self.hparams.sampling_steps
        rest = self.diffusion.sample(denoiser, conditions, self.start, steps, self.hparams.sampler)
        return recalled + self.rest * rest

    @property
    def _denoiser(self) -> Denoiser:
        if self.network is None:
            raise ValueError("expected a DiT, got a generator without (generator_refine: false)")
        return self.network

    def _recalled(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """What conditions the DiT, and the scaled neurons (B, P) to which its own are added."""
        if self.recall is None:
            return conditions, conditions.new_zeros(len(conditions), self.size)
        recalled = self.recall(conditions)
        return torch.cat([conditions, recalled], dim=1), recalled
