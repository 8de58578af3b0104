"""Pages examined, in a process of their own: `python -m tests.families` is the command line."""

from __future__ import annotations

import time
import traceback
import warnings

import diffusers
import torch
import transformers

from tests.families.common import Variant
from tests.families.conformance import Examination, examine
from tests.families.registry import page


def examine_page(name: str) -> list[tuple[Examination | None, str]]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of diffusers and transformers about their own deprecations
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    return [examine_one(variant) for variant in page(name)]


def examine_one(variant: Variant) -> tuple[Examination | None, str]:
    """The examination, if it was passed, and a line about it."""
    start = time.perf_counter()
    try:
        found = examine(variant)
    except Exception:
        return None, f"| {variant.name} | FAILED |\n{traceback.format_exc(limit=-3)}"
    figures = [f"{value:.1e}" for value in found.difference[:3]] if found.difference else [""] * 3
    by_hand = f"{found.bf16.by_hand.gradient:.1e}" if found.bf16 and found.bf16.by_hand else ""
    cosine = f"{found.bf16.of_single.cosine:.4f}" if found.bf16 else ""
    cells = (variant.name, *figures, by_hand, cosine, found.row.result, f"{time.perf_counter() - start:.1f}")
    return found, "| " + " | ".join(cells) + " |"
