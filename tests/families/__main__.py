"""`python -m tests.families [PAGE ...]`: the largest relative differences between `PipelineStep` and the hand-written
steps, for all pages or the named ones."""

from __future__ import annotations

import functools
import sys
import traceback

from tests.families.common import Variant
from tests.families.compare import compare, pipeline_step
from tests.families.registry import PAGES, page


def line(variant: Variant) -> str:
    pipe = variant.build()
    step = pipeline_step(variant, pipe)
    if variant.training_step is None:
        return f"| {variant.name} | latents {tuple(step.latent_shape)}, no step by hand | | | | |"
    cases = [compare(variant, pipe, step, t, weighted) for t in variant.timesteps for weighted in (False, True)]
    worst = functools.reduce(lambda a, b: a.worst(b), cases)
    times = ", ".join(f"{t:g}" for t in variant.timesteps)
    return (
        f"| {variant.name} | {times} | {worst.loss:.1e} | {worst.gradient:.1e} | {worst.parameter:.1e} "
        f"| {worst.cosine:.8f} |"
    )


def main(pages: list[str]) -> None:
    print("| variant | timesteps | loss | gradient | worst parameter | cosine |\n|---|---|---|---|---|---|")
    for variant in [variant for name in pages or PAGES for variant in page(name)]:
        try:
            print(line(variant), flush=True)
        except Exception:
            print(f"| {variant.name} | failed |\n{traceback.format_exc()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
