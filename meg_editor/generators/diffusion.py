"""Diffusion of neuron weights: training objective and sampler, on diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

Prediction = Literal["v_prediction", "sample"]
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, condition) -> prediction


class Diffusion:
    """Training loss (eq. 8) and deterministic DDIM sampler, with DDPM's linear beta schedule.

    Args:
        prediction: what the denoiser predicts, the velocity (eq. 7) or the clean sample.
        timesteps: length of the schedule.

    Example:
        >>> target = torch.ones(1, 4)
        >>> perfect = lambda x, t, condition: target  # a denoiser which knows the clean sample
        >>> sampled = Diffusion("sample").sample(perfect, torch.zeros(1, 2), torch.zeros(4), 2)
        >>> torch.allclose(sampled, target)
        True
    """

    def __init__(self, prediction: Prediction = "v_prediction", timesteps: int = 1000) -> None:
        self.prediction = prediction
        self.timesteps = timesteps
        # DDPM's 1e-4 to 0.02 at T = 1000, scaled so that any T ends at pure noise.
        self._config: dict[str, Any] = {
            "num_train_timesteps": timesteps,
            "beta_schedule": "linear",
            "beta_start": 0.1 / timesteps,
            "beta_end": 20 / timesteps,
            "prediction_type": prediction,
            # With few steps the first one must start at pure noise.
            "timestep_spacing": "trailing",
        }
        # clip_sample defaults to True, which would cut weights off at 1.
        self._training = DDIMScheduler(**self._config, clip_sample=False)

    def draw(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise (B, P) and time steps (B,) for clean samples (B, P), on the generator's device.

        Half of the time steps are uniform, half near pure noise: there the denoiser must predict
        the neuron from the condition alone, which few-step sampling depends on.
        """
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        noise = torch.randn(clean.shape, **options)
        t = torch.randint(self.timesteps, (len(clean),), **options)
        late = torch.rand(len(clean), **options) < 0.5
        return noise, torch.where(late, self.timesteps - 1 - t // 10, t)

    def loss(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """Mean squared error of the denoiser (eq. 8), a scalar.

        Args:
            clean: (B, P).
            condition: (B, E).
            noise, t: as of `draw`.
        """
        noisy = self._training.add_noise(clean, noise, t)
        if self.prediction == "sample":
            target = clean
        else:
            target = self._training.get_velocity(clean, noise, t)
        predicted = denoiser(noisy, t, condition)
        return (predicted.float() - target).square().mean()

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        condition: Tensor,
        start: Tensor,
        steps: int,
    ) -> Tensor:
        """Samples (B, P) under conditions (B, E), by DDIM.

        Args:
            start: (P,) noise at which every row starts: a sample does not depend on its batch.
            steps: sampling steps.
        """
        scheduler = DDIMScheduler(**self._config, clip_sample=False)
        scheduler.set_timesteps(steps)  # on the CPU: a scheduler reads its tables there
        x = start.expand(len(condition), -1)
        for t in scheduler.timesteps:
            time = torch.full((len(x),), int(t), device=x.device)
            predicted = denoiser(x, time, condition)
            x = scheduler.step(predicted, t, x).prev_sample
        return x
