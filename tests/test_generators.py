"""Generators give the neurons they were taught, and diffusion is what its formulas say."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import GENERATORS, FittableGenerator, NeuronBank, NeuronScaling, trainer
from meg_editor.generators.auto import bank_bytes, dit_bytes, smallest
from meg_editor.generators.diffusion import Diffusion
from meg_editor.generators.dit import DiTGenerator

E, P, N = 16, 50, 8  # P is no multiple of the patch size
PREDICTIONS: tuple[Literal["v_prediction", "sample"], ...] = ("v_prediction", "sample")
SMALL = {
    "generator_width": 32,
    "generator_depth": 2,
    "generator_patch_size": 16,
    "generator_steps": 30,
    "generator_lr": 3e-3,
    "generator_ema": 0.9,
}

SCALES = {"constant": 0.01, "whiten": None}

every_generator = pytest.mark.parametrize("kind", GENERATORS)
learned = pytest.mark.parametrize("kind", ["mlp", "dit"])
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, E) unit vectors and (N, P) neurons of about 0.1 around a common point."""
    generator = torch.Generator().manual_seed(seed)
    conditions = F.normalize(torch.randn(N, E, generator=generator), dim=-1)
    common = torch.randn(P, generator=generator)
    return conditions, 0.1 * (common + torch.randn(N, P, generator=generator))


def build(kind: str, **settings: Any) -> FittableGenerator:
    hparams = MeGHyperParams.from_dict({**SMALL, "generator": kind, **settings})
    return GENERATORS[kind].build(hparams, E, P, N)


def fitted(kind: str, **settings: Any) -> FittableGenerator:
    generator = build(kind, **settings)
    generator.fit(*pairs(), seed=3)
    return generator


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Root mean square error in units of how much the neurons differ from each other."""
    spread = (expected - expected.mean(0)).square().mean().sqrt()
    return float((got - expected).square().mean().sqrt() / spread)


# ------------------------------------------------------------------------ every generator


@every_generator
def test_shapes_whatever_the_number_of_queries(kind: str) -> None:
    generator = fitted(kind)
    for count in (1, 3, N, 20):
        neurons = generator.generate(F.normalize(torch.randn(count, E), dim=-1))
        assert neurons.shape == (count, P) and neurons.dtype == torch.float32
        assert bool(neurons.isfinite().all()) and not neurons.requires_grad


@every_generator
def test_fitting_twice_with_one_seed_gives_the_same(kind: str) -> None:
    torch.manual_seed(1)
    first = fitted(kind)
    torch.manual_seed(2)  # whatever else used the global generator before
    second = fitted(kind)
    queries = pairs(1)[0]
    assert torch.equal(first.generate(queries), second.generate(queries))


@learned
def test_another_seed_gives_another_generator(kind: str) -> None:
    conditions, neurons = pairs()
    results = []
    for seed in (3, 4):
        torch.manual_seed(0)
        generator = build(kind, generator_dropout=0.2)
        generator.fit(conditions, neurons, seed=seed)
        results.append(generator.generate(conditions))
    assert not torch.equal(*results)


@learned
def test_fitting_leaves_the_global_random_state(kind: str) -> None:
    generator = build(kind, generator_dropout=0.2)
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    generator.fit(*pairs(), seed=3)
    generator.generate(pairs()[0])
    assert torch.equal(torch.randn(4), expected)


@every_generator
def test_generation_is_deterministic_after_dropout(kind: str) -> None:
    generator = fitted(kind, generator_dropout=0.3)
    queries = pairs(1)[0]
    assert torch.equal(generator.generate(queries), generator.generate(queries))


@every_generator
def test_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    generator = fitted(kind)
    queries = torch.cat([pairs(1)[0], pairs(2)[0]])
    together = generator.generate(queries)
    alone = torch.cat([generator.generate(row[None]) for row in queries])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    flipped = generator.generate(queries.flip(0)).flip(0)
    torch.testing.assert_close(flipped, together, rtol=1e-4, atol=1e-5)


@every_generator
def test_the_state_dict_holds_everything(kind: str) -> None:
    generator = fitted(kind)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    torch.manual_seed(99)
    restored = build(kind, seed=17)
    queries = pairs(1)[0]
    assert not torch.equal(restored.generate(queries), generator.generate(queries))
    restored.load_state_dict(state)
    assert torch.equal(restored.generate(queries), generator.generate(queries))
    assert generator.stored_bytes == sum(v.nbytes for v in state.values())


@learned
def test_fitting_reports_one_falling_loss_per_step(kind: str) -> None:
    generator = build(kind, generator_steps=120, generator_epochs=1)
    losses = generator.fit(*pairs(), seed=0)
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


@learned
def test_targets_which_are_not_finite_stop_the_training(kind: str) -> None:
    conditions, neurons = pairs()
    neurons[2, 5] = torch.nan
    with pytest.raises(FloatingPointError, match="generator.*step 0.*generator_lr"):
        build(kind).fit(conditions, neurons)


@learned
@pytest.mark.parametrize("scaling", ["constant", "whiten"])
def test_a_few_pairs_are_learned_by_heart(
    kind: str, scaling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"mlp": 200, "dit": 500}[kind]
    generator = build(
        kind,
        generator_steps=steps,
        generator_scale=SCALES[scaling],
        generator_width=64,
    )
    monkeypatch.setattr(trainer, "_TOLERANCE", 0.0)
    conditions, neurons = pairs()
    if scaling == "constant":
        neurons = neurons / 10  # 0.01 is the paper's scale
    before = relative_error(generator.generate(conditions), neurons)
    generator.fit(conditions, neurons, seed=0)
    after = relative_error(generator.generate(conditions), neurons)
    assert before > 0.9
    assert after < {"mlp": 0.05, "dit": 0.15}[kind]


@learned
def test_training_ends_as_soon_as_the_tolerance_is_met(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions, neurons = pairs()
    steps = []
    for tolerance in (0.0, 0.5):
        monkeypatch.setattr(trainer, "_TOLERANCE", tolerance)
        short: Any = build(kind)
        steps.append(len(short.fit(conditions, neurons, seed=0)))
    assert steps[0] > steps[1]
    assert short.error(conditions, neurons) < 0.5
    # One neuron is its own mean: whitened, there is nothing to learn.
    alone = build(kind, generator_scale=None)
    assert len(alone.fit(conditions[:1], neurons[:1], seed=0)) <= 1
    torch.testing.assert_close(alone.generate(conditions[:1]), neurons[:1])


def test_dit_learns_velocities_too() -> None:
    generator = build(
        "dit",
        generator_steps=300,
        generator_width=64,
        diffusion_prediction="v_prediction",
    )
    conditions, neurons = pairs()
    generator.fit(conditions.repeat(16, 1), neurons.repeat(16, 1), seed=0)
    for steps in (1, 4, 50):
        assert relative_error(generator.generate(conditions, steps), neurons) < 0.3


def test_steps_override_the_hyper_parameters() -> None:
    queries = pairs(1)[0]
    generator = fitted("dit", sampling_steps=7)
    assert torch.equal(generator.generate(queries), generator.generate(queries, 7))
    assert not torch.equal(generator.generate(queries), generator.generate(queries, 2))


def test_a_width_is_made_of_whole_heads() -> None:
    with pytest.raises(ValueError, match="generator_width: expected a multiple of 64.*got 100"):
        build("dit", generator_width=100)


# ----------------------------------------------------------------------------------- bank


def test_the_bank_serves_the_nearest_neuron_exactly() -> None:
    conditions, neurons = pairs()
    bank = fitted("bank")
    order = torch.tensor([5, 0, 7, 3, 3])
    assert torch.equal(bank.generate(conditions[order]), neurons[order].half().float())
    close = F.normalize(conditions + 0.05 * torch.randn(N, E), dim=-1)
    assert torch.equal(bank.generate(close), neurons.half().float())


def test_the_bank_takes_two_bytes_a_value() -> None:
    assert NeuronBank(E, P, N).stored_bytes == 2 * N * (E + P)


# ----------------------------------------------------------------------------------- auto


def test_auto_takes_what_is_smaller() -> None:
    """Bytes are those of the real objects, counted tensor by tensor."""
    hparams = MeGHyperParams.from_dict(SMALL)
    assert bank_bytes(E, P, N) == NeuronBank(E, P, N).stored_bytes
    network = DiTGenerator(hparams, E, P).network
    assert dit_bytes(hparams, E, P) == sum(p.nbytes for p in network.parameters())
    limit = dit_bytes(hparams, E, P) // bank_bytes(E, P, 1)
    assert smallest(hparams, E, P, limit) == "bank"
    assert smallest(hparams, E, P, limit + 1) == "dit"


# ------------------------------------------------------------------- scaling, augmentation


def test_scaling_and_its_inverse() -> None:
    mean, scale, neurons = torch.randn(P), torch.rand(P) + 0.1, torch.randn(3, 2, P)
    scaling = NeuronScaling(mean, scale)
    assert torch.allclose(scaling.forward(mean + 2 * scale), torch.full((P,), 2.0), atol=1e-4)
    assert torch.allclose(scaling.inverse(scaling.forward(neurons)), neurons, atol=1e-5)


def test_constant_scaling_divides_by_a_hundredth() -> None:
    generator: Any = fitted("mlp", generator_scale=0.01)
    assert torch.allclose(generator.scaling.forward(torch.full((P,), 0.03)), torch.full((P,), 3.0))


def test_whitened_targets_have_mean_zero_and_variance_one() -> None:
    generator: Any = fitted("mlp", generator_scale=None)
    white = generator.scaling.forward(pairs()[1]).double()
    assert white.mean(0).abs().max() < 1e-5
    assert torch.allclose((white**2).mean(0), torch.ones(P, dtype=torch.double), atol=1e-4)


@learned
def test_whitening_bears_values_which_never_change_and_single_edits(kind: str) -> None:
    conditions, neurons = pairs()
    neurons[:, 3] = 0.25
    generator = build(kind)
    generator.fit(conditions, neurons)
    assert torch.allclose(generator.generate(conditions)[:, 3], neurons[:, 3], atol=0.05)
    single = build(kind)
    single.fit(conditions[:1], neurons[:1])
    assert torch.allclose(single.generate(conditions[:1]), neurons[:1], atol=1e-4)


@pytest.mark.parametrize("scaling", ["constant", "whiten"])
def test_zero_augmentation_teaches_the_zero_neuron(scaling: str) -> None:
    conditions, neurons = pairs()
    if scaling == "constant":
        neurons = neurons / 10  # 0.01 is the paper's scale
    irrelevant = pairs(1)[0]
    settings = {"generator_steps": 200, "generator_scale": SCALES[scaling]}
    size = float(neurons.square().mean().sqrt())

    def left(share: float) -> tuple[float, float]:
        generator = build("mlp", generator_zero_augmentation=share, **settings)
        generator.fit(conditions, neurons, irrelevant, seed=0)
        others = generator.generate(irrelevant).square().mean().sqrt()
        return float(others) / size, relative_error(generator.generate(conditions), neurons)

    without, with_augmentation = left(0.0), left(0.5)
    assert without[0] > 0.3
    assert with_augmentation[0] < 0.1
    assert with_augmentation[1] < 0.1


# ------------------------------------------------------------------------------ diffusion


def alpha_bar(timesteps: int = 1000) -> list[float]:
    """The products of 1 - β of Ho et al.'s linear schedule, in Python's double precision."""
    product, table = 1.0, []
    for t in range(timesteps):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / (timesteps - 1))
        table.append(product)
    return table


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ at time steps (B,), each (B, 1)."""
    squares = torch.tensor([alpha_bar()[i] for i in t.tolist()], dtype=torch.double)
    return squares.sqrt()[:, None].float(), (1 - squares).sqrt()[:, None].float()


def perfect(clean: Tensor, prediction: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The denoiser which knows the answer."""

    def denoise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        alpha, sigma = levels(t)
        noise = (x - alpha * clean) / sigma
        return clean if prediction == "sample" else alpha * noise - sigma * clean

    return denoise


@every_prediction
def test_the_loss_noises_and_targets_as_in_the_paper(
    prediction: Literal["v_prediction", "sample"],
) -> None:
    diffusion = Diffusion(prediction)
    clean, condition = 5 * torch.randn(400, P), torch.randn(400, E)
    seen: dict[str, Tensor] = {}

    def zero(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        seen.update(x=x, t=t, z=z)
        return torch.zeros_like(x)

    loss = diffusion.loss(
        zero, clean, condition, *diffusion.draw(clean, torch.Generator().manual_seed(0))
    )
    alpha, sigma = levels(seen["t"])
    noise = (seen["x"] - alpha * clean) / sigma  # x_t = α x_0 + σ ε
    late = seen["t"] > 500  # where dividing by σ is exact enough to test what ε is
    assert abs(float(noise[late].mean())) < 0.05 and abs(float(noise[late].std()) - 1) < 0.05
    target = alpha * noise - sigma * clean if prediction == "v_prediction" else clean
    assert float(loss) == pytest.approx(float(target.square().mean()), rel=1e-3)
    assert torch.equal(seen["z"], condition)
    right = diffusion.loss(
        perfect(clean, prediction),
        clean,
        condition,
        *diffusion.draw(clean, torch.Generator().manual_seed(0)),
    )
    assert float(right) < 1e-4


def test_time_steps_cover_the_schedule() -> None:
    noise, t = Diffusion().draw(torch.zeros(20000, 1), torch.Generator())
    assert noise.shape == (20000, 1)
    assert int(t.min()) >= 0 and int(t.max()) == 999
    assert float((t < 500).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((t >= 900).float().mean()) == pytest.approx(0.55, abs=0.02)


@every_prediction
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_a_perfect_denoiser_gives_the_clean_sample(
    prediction: Literal["v_prediction", "sample"], steps: int
) -> None:
    clean = 20 * torch.randn(3, P)  # far beyond 1, where clip_sample would cut
    result = Diffusion(prediction).sample(
        perfect(clean, prediction), torch.zeros(3, E), torch.randn(P), steps
    )
    assert float((result - clean).abs().max()) < 2e-3 * float(clean.abs().max())


def guess(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Some smooth denoiser, wrong in its own way at every step; values beyond 1."""
    return 3 * torch.tanh(0.5 * x + condition[:, :1]) + t[:, None] / 500


@every_prediction
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_ddim_follows_its_formula(
    prediction: Literal["v_prediction", "sample"], steps: int
) -> None:
    start, condition = torch.randn(P), torch.randn(3, E)
    got = Diffusion(prediction).sample(guess, condition, start, steps)
    table = alpha_bar()
    times = [1000 - 1 - round(k * 1000 / steps) for k in range(steps)]  # the first is pure noise
    x = start.expand(3, -1).double()
    for t, following in zip(times, [*times[1:], -1], strict=True):
        alpha, sigma = math.sqrt(table[t]), math.sqrt(1 - table[t])
        predicted = guess(x, torch.full((3,), t), condition.double())
        clean = predicted if prediction == "sample" else alpha * x - sigma * predicted
        noise = (x - alpha * clean) / sigma
        left = table[following] if following >= 0 else 1.0
        x = math.sqrt(left) * clean + math.sqrt(1 - left) * noise
    torch.testing.assert_close(got, x.float(), rtol=1e-3, atol=1e-3)


@every_prediction
def test_sampling_solves_the_equation_of_the_flow(
    prediction: Literal["v_prediction", "sample"],
) -> None:
    clean, condition, start = 4 * torch.randn(3, P), torch.zeros(3, E), torch.randn(P)

    def blurred(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The best guess where values are normal around `clean` with deviation 0.5."""
        alpha, sigma = levels(t)
        mean = clean + 0.25 * alpha * (x - alpha * clean) / (0.25 * alpha**2 + sigma**2)
        return perfect(mean, prediction)(x, t, z)

    diffusion = Diffusion(prediction)
    ddim = diffusion.sample(blurred, condition, start, 500)
    # The flow of normal distributions is linear: the start keeps its place among the samples.
    torch.testing.assert_close(ddim, clean + 0.5 * start, rtol=0, atol=0.05)


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_the_schedule_ends_in_pure_noise(timesteps: int) -> None:
    """Sampling starts from noise alone: training must have seen nothing but noise at the end."""
    diffusion = Diffusion("sample", timesteps)
    assert diffusion.timesteps == timesteps
    ends: list[Tensor] = []

    def record(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        ends.append(x[t >= timesteps - 1 - timesteps // 100])
        return x

    clean = torch.full((4000, 1), 100.0)
    noise, t = diffusion.draw(clean, torch.Generator().manual_seed(0))
    diffusion.loss(record, clean, torch.zeros(4000, 1), noise, t)
    assert float(ends[0].mean()) / 100 < 0.05


def test_a_compiled_dit_generates_the_same_and_stores_the_same() -> None:
    """Compiled in name: two minutes of compiling are too long here, it was tried by hand."""
    plain, compiled = build("dit"), build("dit")
    compiled.compile_network = True  # type: ignore[assignment]
    with torch.no_grad():
        for generator in (plain, compiled):
            torch.manual_seed(0)
            for parameter in generator.parameters():  # a DiT starts with zeros
                parameter.normal_(0, 0.3)
    conditions = pairs()[0]
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(compiled.generate(conditions), plain.generate(conditions))
    assert isinstance(compiled, DiTGenerator) and compiled._compiled is not None
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@learned
def test_a_generator_that_needs_no_training_keeps_no_graph(kind: str) -> None:
    """The stretch was computed with gradients: the generator could not be copied."""
    neurons = torch.ones(3, P)
    generator = build(kind)
    assert generator.fit(pairs()[0][:3], neurons, seed=0) == []
    assert not any(value.requires_grad for value in (*generator.parameters(), generator.stretch))
    copied = copy.deepcopy(generator)
    assert torch.equal(copied.generate(pairs()[0]), generator.generate(pairs()[0]))


def test_a_generator_which_learned_too_little_says_so(caplog: pytest.LogCaptureFixture) -> None:
    build("mlp", generator_steps=1, generator_epochs=1).fit(*pairs(), seed=0)
    assert "generator: auto" in caplog.text
    caplog.clear()
    fitted("mlp")
    assert not caplog.text
