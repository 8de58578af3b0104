"""Which second of a clip, and which object, of the clips of a run: pictures and a table. `hf-motive explain`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset

    from ..explaining import Explanation

_CSV, _JSON = "explained.csv", "explained.json"


@dataclass
class ExplainArguments:
    """Which clips to explain, and how finely."""

    source: str = field(metadata={"help": "The output folder of `hf-motive score`."})
    output: str | None = field(
        default=None, metadata={"help": "Folder for pictures and tables. None: `explained` in the run's folder."}
    )
    clips: list[str] | None = field(
        default=None,
        metadata={"help": "Names of files, or influence_ids, in place of the best.", "metavar": "NAME"},
    )
    count: int = field(default=5, metadata={"help": "How many of the best."})
    worst: bool = field(default=False, metadata={"help": "The worst instead."})
    by: str = field(
        default="influence_rank",
        metadata={
            "help": "Column to choose by: a rank is best when least, every other number when largest.",
            "metavar": "COLUMN",
        },
    )
    seconds: float = field(default=0.5, metadata={"help": "Length of a segment, about: whole latent frames."})
    regions: str | None = field(
        default=None,
        metadata={
            "help": "'motion': the objects that move. Or a column of labels, whole numbers (H, W) or (F, H, W), 0 for "
            "the rest. None: time alone."
        },
    )
    objects: int = field(default=3, metadata={"help": "With --regions motion, how many at most."})
    whole: bool = field(
        default=False,
        metadata={"help": "All of clips that are longer than the model's, in windows. Else what was scored."},
    )
    stride: float | None = field(
        default=None, metadata={"help": "With --whole, seconds from one window to the next. None: half a window."}
    )
    picture: Literal["png", "svg"] = field(default="png", metadata={"help": "What the pictures are."})

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")


def explain(arguments: ExplainArguments) -> Path:
    """Write a picture a clip, `explained.csv` (a row a segment, region and window) and `explained.json`; print what
    was found. What was computed once is kept in `parts`, and asked again.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: No run lies there, or it has not ended.
        ValueError: No such clip or column; or as `MotiveAttributor.explain`.
    """
    from ..config import AttributionConfig
    from ..corpus import load_clips
    from ..errors import ClipError
    from ..explaining import Cut, queries_of
    from ..explaining import explain as explain_clip
    from ..processes import processes
    from ..scoring import JOB, ScoreArguments, _load_attributor, quiet

    run = Path(arguments.source).expanduser()
    if not (run / JOB).exists():
        raise FileNotFoundError(
            f"{arguments.source} holds no {JOB}: give the output folder of a `hf-motive score` that has ended"
        )
    job = json.loads((run / JOB).read_text(encoding="utf-8"))
    told = replace(ScoreArguments(**job["arguments"]), encode=False)
    names: dict[str, Any] = {"video_column": told.video_column, "caption_column": told.caption_column}
    rows = _chosen(arguments, run, told.video_column)
    quiet()
    attributor = _load_attributor(told, AttributionConfig.from_dict(job["config"]), processes().device)
    queries = load_clips(told.queries, split=told.query_split, **names)
    asked = queries_of(attributor, queries, run / "index-queries")
    cut = Cut(arguments.seconds, arguments.whole, arguments.stride, arguments.regions, arguments.objects)
    output = Path(arguments.output).expanduser() if arguments.output else run / "explained"
    output.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, Explanation]] = []
    for row in rows:
        try:
            explanation = explain_clip(attributor, row, asked, cut, output / "parts")
        except ClipError as error:
            print(f"{row['influence_id']}: {error.status}: {error.reason}")
            continue
        name = f"{Path(explanation.name).stem}-{row['influence_id'][:8]}"
        explanation.plot(output / f"{name}.{arguments.picture}")
        found.append((row["influence_id"], explanation))
        start, end = explanation.best()
        print(
            f"{name}: influence {float(explanation.influence.double().mean()):+.3f}, most per second from {start:.2f} "
            f"to {end:.2f} s" + _said(explanation),
            flush=True,
        )
    if not found:
        raise ValueError("none of the clips could be explained; what was wrong with each stands above")
    _write(output, found)
    print(f"\nPictures, {_CSV} and {_JSON}: {output}")
    return output


def _said(explanation: Explanation) -> str:
    regions = explanation.regions()
    if len(regions) == 1 or len(explanation.windows) > 1:
        return ""
    return "; " + ", ".join(f"{row['region']} {row['influence']:+.3f}" for row in regions)


def _chosen(arguments: ExplainArguments, run: Path, video_column: str) -> Iterator[Mapping[str, Any]]:
    """The rows to explain, best first, or as they were named."""
    from datasets import Dataset

    from ..corpus import clip_name
    from ..scoring import load_run

    scored = load_run(run)
    table: Any = scored if isinstance(scored, Dataset) else Dataset.from_parquet(str(run / "influence.parquet"))
    table = table.with_format(None)
    places = _places(arguments, table, [clip_name(video, "") for video in table[video_column]])
    if isinstance(scored, Dataset):
        return (table[place] for place in places)
    ids = table["influence_id"][:]
    wanted = {ids[place] for place in places}
    return (row for row in scored if row["influence_id"] in wanted)


def _places(arguments: ExplainArguments, table: Dataset, names: list[str]) -> list[int]:
    ids, statuses = table["influence_id"][:], table["influence_status"][:]
    if arguments.clips:
        missing = [name for name in arguments.clips if name not in names and name not in ids]
        if missing:
            raise ValueError(f"no clip of the run is called {missing[0]!r}; the first is {names[0] or ids[0]!r}")
        return [ids.index(name) if name in ids else names.index(name) for name in arguments.clips]
    if arguments.by not in table.column_names:
        raise ValueError(f"the run has no column {arguments.by!r}; it has {', '.join(table.column_names)}")
    values = table[arguments.by][:]
    ranked = [place for place, status in enumerate(statuses) if status == "ok" and values[place] == values[place]]
    best_is_least = arguments.by.endswith("_rank")
    ranked.sort(key=lambda place: values[place], reverse=best_is_least == arguments.worst)
    return ranked[: arguments.count]


def _write(output: Path, found: list[tuple[str, Explanation]]) -> None:
    rows = [{"influence_id": identity, **row} for identity, explanation in found for row in explanation.rows()]
    with (output / _CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    said = [
        {
            "clip": explanation.name,
            "influence_id": identity,
            "influence": float(explanation.influence.double().mean()),
            "best": explanation.best(),
            "segments": explanation.segments(),
            "regions": explanation.regions(),
        }
        for identity, explanation in found
    ]
    (output / _JSON).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
