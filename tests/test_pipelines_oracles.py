"""`PipelineStep` against a training step written by hand, for every family of tests/families."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.families.common import example_pixels
from tests.families.compare import CAPTION, difference, example_weight, gradients, pipeline_step
from tests.families.registry import variants

CASES = [(name, timestep) for name, family in variants().items() for timestep in family.timesteps]


@functools.cache
def built(name: str, dtype: torch.dtype = torch.float32):
    """A family's pipeline and its step, built and checked once for all tests."""
    family = variants()[name]
    pipe = family.build(dtype)
    return family, pipe, pipeline_step(family, pipe)


@pytest.mark.parametrize(("name", "timestep"), CASES)
def test_schedule_holds_the_timestep_asked_for(name: str, timestep: float) -> None:
    """Within two of a thousand, and the noisier the larger, also where the schedule's own time runs backwards."""
    _, _, step = built(name)
    level = step.resolve_timestep(timestep)
    if name == "stable-video-diffusion":  # σ by Karras' rule, asked for by its place between 700 and 0.002
        place = timestep / 1000
        root = place * 700 ** (1 / 7) + (1 - place) * 0.002 ** (1 / 7)
        assert level.sigma == pytest.approx(root**7, rel=0.05)
    elif level.sigma + level.signal == pytest.approx(1, abs=1e-6):  # flow: σ is the timestep
        assert level.sigma == pytest.approx(timestep / 1000, abs=2e-3)
    else:
        assert level.timestep == pytest.approx(timestep, abs=2)


@pytest.mark.parametrize("name", variants())
def test_oracle_is_sharp(name: str) -> None:
    """A wrong caption, a wrong noise level or a weight turned round would be seen, far above the tolerances."""
    family, pipe, _ = built(name)
    pixels = example_pixels(family.num_frames, family.height, family.width)
    noise = torch.randn(family.latent_shape, generator=torch.Generator().manual_seed(3))
    weight = example_weight(noise.shape)
    timestep = 0.2 if name == "stable-video-diffusion" else family.timesteps[-1]

    def step(caption: str, timestep: float, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
        loss = family.training_step(pipe, pixels, caption, noise, timestep, weight)
        return gradients(family, pipe, loss), loss.detach()

    right = step(CAPTION, timestep, weight)
    wrong = {
        "timestep": step(CAPTION, timestep * 1.02, weight),
        "weight in time": step(CAPTION, timestep, weight.flip(0)),
        "weight in space": step(CAPTION, timestep, weight.flip(1)),
    }
    if hasattr(pipe, "tokenizer"):
        wrong["caption"] = step("a blue box slides", timestep, weight)
    for what, (grads, loss) in wrong.items():
        assert difference(grads, right[0], loss, right[1]).gradient > 100 * GRADIENT_TOLERANCE, what
