"""`python -m tests.families`: the largest relative differences between `PipelineStep` and the hand-written steps."""

from __future__ import annotations

import functools

from tests.families import FAMILIES
from tests.families.compare import compare, pipeline_step


def main() -> None:
    print("| family | timesteps | loss | gradient | worst parameter | cosine |\n|---|---|---|---|---|---|")
    for family in FAMILIES.values():
        pipe = family.build()
        step = pipeline_step(family, pipe)
        cases = [compare(family, pipe, step, t, weighted) for t in family.timesteps for weighted in (False, True)]
        worst = functools.reduce(lambda a, b: a.worst(b), cases)
        times = ", ".join(f"{t:g}" for t in family.timesteps)
        print(
            f"| {family.name} | {times} | {worst.loss:.1e} | {worst.gradient:.1e} | {worst.parameter:.1e} "
            f"| {worst.cosine:.8f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
