"""Tiny real pipelines, one page a family, each with a training step written by hand: the oracles of `PipelineStep`."""

from __future__ import annotations

from tests.families import animatediff, cogvideox, hunyuan, ltx, mochi, svd, wan, wan22, wan22_5b
from tests.families.common import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        wan.FAMILY,
        wan22.FAMILY,
        wan22_5b.FAMILY,
        cogvideox.FAMILY,
        cogvideox.FAMILY_DPM,
        ltx.FAMILY,
        hunyuan.FAMILY,
        mochi.FAMILY,
        animatediff.FAMILY,
        svd.FAMILY,
    )
}
