"""Pages on which people choose between two candidates' clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .generate import Clip

if TYPE_CHECKING:
    from .arguments import EvaluateArguments


def write_pages(clips: Mapping[str, Sequence[Clip]], arguments: EvaluateArguments, against: str) -> dict[str, str]:
    """A page for each candidate and the one that all are compared with: `page-1.html`, `page-2.html`, ...

    A page is sent to raters, who are not to know what is compared: so its name does not say.

    Returns:
        Candidate -> the page's name in the output folder.
    """
    from ..preference import write_page

    pages: dict[str, str] = {}
    theirs = {(clip.prompt.key, clip.repeat): clip for clip in clips[against] if clip.file.exists()}
    for name, of_one in clips.items():
        if name == against:
            continue
        pairs = [
            {"prompt": clip.prompt.text, "a": clip.file, "b": theirs[key].file}
            for clip in of_one
            if clip.file.exists() and (key := (clip.prompt.key, clip.repeat)) in theirs
        ]
        if pairs:
            pages[name] = f"page-{len(pages) + 1}.html"
            write_page(Path(arguments.output) / pages[name], pairs, seed=arguments.seed)
    return pages
