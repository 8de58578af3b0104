"""The training steps written by hand notice what is wrong, and schedules hold what is asked for.

That `PipelineStep` equals them is the matter of test_conformance.py.
"""

from __future__ import annotations

import functools

import pytest
import torch

from tests.families.common import example_pixels
from tests.families.compare import CAPTION, difference, example_weight, gradients, pipeline_step
from tests.families.conformance import GRADIENT_TOLERANCE
from tests.families.registry import variants

#: One variant of each way of noising and predicting.
NAMES = (
    "wan2.1",
    "wan2.2-a14b",
    "wan2.2-5b",
    "cogvideox-ddim",
    "cogvideox-dpm",
    "ltx-video",
    "hunyuanvideo",
    "mochi",
    "animatediff",
    "stable-video-diffusion",
)
CASES = [(name, timestep) for name in NAMES for timestep in variants()[name].timesteps]


@functools.cache
def built(name: str):
    """A variant's pipeline and its step, built and checked once for all tests."""
    variant = variants()[name]
    pipe = variant.build()
    return variant, pipe, pipeline_step(variant, pipe)


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


@pytest.mark.parametrize("name", NAMES)
def test_oracle_is_sharp(name: str) -> None:
    """A wrong caption, a wrong noise level or a weight turned round would be seen, far above the tolerances."""
    variant, pipe, _ = built(name)
    pixels = example_pixels(variant.num_frames, variant.height, variant.width)
    noise = torch.randn(variant.latent_shape, generator=torch.Generator().manual_seed(3))
    weight = example_weight(noise.shape)
    timestep = 0.2 if name == "stable-video-diffusion" else variant.timesteps[-1]

    def step(caption: str, timestep: float, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
        loss = variant.training_step(pipe, pixels, caption, noise, timestep, weight)
        return gradients(variant, pipe, loss), loss.detach()

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
