"""Recalling neurons without descent: random features and a readout solved in closed form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PER_EDIT = 1.25  # a square system would be ill-conditioned
_RIDGES = (1e-4, 1e-2, 1.0)  # of the features' mean square; the first that can be solved
_CHUNK = 1024  # edits, or features, of which the products are held at once


class Recall(nn.Module):
    """z -> level + readout · (GELU(projection · z + offset) - center), by ridge regression.

    The collected neurons of different facts have next to nothing in common (neither facts of one
    relation nor facts of one target are alike), so a network must learn them by heart: gradient
    descent takes half an hour for what one linear solve does in seconds. With at least as many
    features as edits the neurons are met; with fewer the share F/N of their variance is.

    Random features: Rahimi & Recht, NeurIPS 2008; solved readout: Huang et al., Neurocomputing
    2006.
    """

    def __init__(self, dimension: int, size: int, edits: int, most: int) -> None:
        """E = `dimension`, P = `size`; F = 1.25 features per edit, at most `most`."""
        super().__init__()
        features = min(most, math.ceil(_PER_EDIT * edits))
        # A standard deviation of 3 on unit vectors: near anchors are told apart.
        self.projection: Tensor
        self.offset: Tensor
        self.center: Tensor
        self.readout: Tensor
        self.level: Tensor
        self.register_buffer("projection", 3 * torch.randn(features, dimension))
        self.register_buffer("offset", torch.randn(features))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("readout", torch.zeros(features, size))
        self.register_buffer("level", torch.zeros(size))

    def forward(self, conditions: Tensor) -> Tensor:
        """Unit vectors (B, E) -> scaled neurons (B, P)."""
        return torch.addmm(self.level, self._features(conditions), self.readout)

    @torch.no_grad()
    def solve(self, conditions: Tensor, targets: Tensor) -> None:
        """Fit unit vectors (N, E) to scaled neurons (N, P).

        Takes O(N·F·M + M³) operations and O(M²) memory, M the smaller of N and F.

        Raises:
            FloatingPointError: values which are not finite.
        """
        if not bool(conditions.isfinite().all() and targets.isfinite().all()):
            raise FloatingPointError(
                "generator: expected finite embeddings and neurons, got NaN or infinity; lower "
                "collection_lr"
            )
        count, total = len(conditions), len(self.center)
        mean = torch.zeros_like(self.center)
        self.center.zero_()
        for row in _slices(count):
            mean += self._features(conditions[row]).sum(0) / count
        self.center.copy_(mean)
        self.level.copy_(targets.mean(0))
        solve = self._solve_dual if count < total else self._solve_primal
        for ridge in _RIDGES:
            try:
                return solve(conditions, targets - self.level, ridge)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                continue  # embeddings which are all but the same
        raise FloatingPointError(
            f"generator: the embeddings of {count} edits cannot be told apart; expected an encoder "
            "which tells edited queries apart, or generator: bank"
        )

    def _solve_primal(self, conditions: Tensor, targets: Tensor, ridge: float) -> None:
        total = len(self.center)
        gram, products = self.center.new_zeros(total, total), torch.zeros_like(self.readout)
        for row in _slices(len(conditions)):
            features = self._features(conditions[row])
            gram.addmm_(features.T, features)
            products.addmm_(features.T, targets[row])
        self.readout.copy_(_ridge_solution(gram, products, ridge))

    def _solve_dual(self, conditions: Tensor, targets: Tensor, ridge: float) -> None:
        """By the smaller system, where there are fewer edits than features."""
        gram = self.center.new_zeros(len(conditions), len(conditions))
        for column in _slices(len(self.center)):
            features = self._features(conditions, column)
            gram.addmm_(features, features.T)
        weights = _ridge_solution(gram, targets, ridge)
        for column in _slices(len(self.center)):
            self.readout[column] = self._features(conditions, column).T @ weights

    def _features(self, conditions: Tensor, column: slice = slice(None)) -> Tensor:
        drive = F.linear(conditions, self.projection[column], self.offset[column])
        return F.gelu(drive) - self.center[column]


def _slices(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def _ridge_solution(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(gram + λ)⁻¹ right for a positive semi-definite (M, M), overwritten, and (M, P)."""
    diagonal = gram.diagonal()
    diagonal.add_(ridge * diagonal.mean().clamp_min(1e-3))
    lower = gram.mT  # the same matrix, laid out so that LAPACK needs no copy of it
    torch.linalg.cholesky(lower, out=lower)
    halfway = torch.linalg.solve_triangular(lower, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mT, halfway, upper=True)
    return solution
