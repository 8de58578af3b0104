"""What is compared, on which prompts, by which metrics: the options of `hf-motive evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..scoring import parsed_call_kwargs
from .candidates import OPTIONS
from .measuring import DISTANCE
from .specs import Spec, parse_specs

#: Metrics that need no weights: what is measured unless something else is asked for.
WEIGHTS_FREE = ("warp_smoothness", "flow_dynamic_degree", "temporal_jitter", "object_permanence")


@dataclass
class EvaluateArguments:
    """What is compared with what."""

    candidates: list[str] = field(
        default_factory=lambda: ["base"],
        metadata={
            "help": "What to compare, as name=place: a pipeline's folder, the folder in which a training ended, a "
            "LoRA (folder or .safetensors), or the Hub id of one of these. A name alone is --pipeline itself. Behind "
            "a comma stands what is its own: base strong=base/folder,guidance=6 tuned=runs/tuned,scale=0.8. There are "
            "guidance, steps, scale (of a LoRA) and pipeline (under weights that are not whole). In YAML: a mapping "
            "by name, each a place or a mapping of place and options."
        },
    )
    pipeline: str | None = field(
        default=None,
        metadata={
            "help": "Diffusers video pipeline, a folder or Hub id: the candidate that is a name alone, and what lies "
            "under LoRAs and fine-tuned denoisers."
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "A .txt with a prompt a line; a .jsonl, .csv or .parquet table with a column prompt (and group); "
            "a folder of clips with captions; or the id of a dataset on the Hub."
        },
    )
    output: str = field(
        default="runs/evaluate",
        metadata={"help": "Folder for clips and results. Started again, the job goes on from here."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the prompts. None: prompt, caption or text."}
    )
    group_column: str = field(
        default="group",
        metadata={"help": "Column, where there is one, of a prompt's kind: results are given by it too."},
    )
    video_column: str = field(
        default="video", metadata={"help": "Column of the clip that a conditioned pipeline starts from."}
    )
    split: str = field(default="train", metadata={"help": "Split of the prompts' dataset."})
    limit: int | None = field(
        default=None, metadata={"help": "Take so many prompts, as many of each group. None: all of them."}
    )
    seeds: int = field(
        default=1,
        metadata={
            "help": "Clips of each prompt, each from its own noise, which is the same for all candidates. More "
            "prompts tell more than more seeds: clips of one prompt resemble each other, and the intervals know."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of all noise: another one gives other clips of the same prompts."})
    steps: int = field(default=30, metadata={"help": "Denoising steps."})
    guidance: float | None = field(
        default=None, metadata={"help": "Scale of classifier-free guidance. None: the pipeline's own default."}
    )
    num_frames: int = field(default=81, metadata={"help": "Frames of a clip."})
    height: int = field(default=480, metadata={"help": "Pixels."})
    width: int = field(default=832, metadata={"help": "Pixels."})
    fps: float = field(default=16.0, metadata={"help": "Frames per second of the files, and of the motion in them."})
    call_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of the pipeline's call: JSON on the command line, a mapping in YAML, as in "
            '\'{"negative_prompt": "blurry"}\'.'
        },
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of hf_motive.metrics, with options behind commas or as mappings in YAML: "
            "subject_consistency,network=my/dino. None: those that need no weights, "
            f"{', '.join(WEIGHTS_FREE)}, and {DISTANCE} where there are references."
        },
    )
    references: str | None = field(
        default=None,
        metadata={"help": f"Real clips, in any form that `score` takes its corpus: {DISTANCE} measures against them."},
    )
    against: str | None = field(
        default=None, metadata={"help": "Name of the candidate that the others are compared with. None: the first."}
    )
    preference: str | None = field(
        default=None,
        metadata={"help": "Metric by which pairs of clips are won and lost. None: each metric in turn."},
    )
    tie: float = field(
        default=0.0,
        metadata={"help": "A pair whose scores differ by no more than this is a tie, in the metric's units."},
    )
    page: bool = field(
        default=False, metadata={"help": "Write an HTML page for each pair of candidates, on which people choose."}
    )
    level: float = field(default=0.95, metadata={"help": "Of the intervals."})
    draws: int = field(default=1000, metadata={"help": "Bootstrap samples of the prompts."})
    dtype: str = field(
        default="auto",
        metadata={"help": "'float32', 'bfloat16', 'float16', or 'auto': bfloat16 on a GPU, float32 on a CPU."},
    )
    threads: int = field(
        default=0, metadata={"help": "CPU threads a process. 0: the machine's cores, shared out among its processes."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Generate the clips of a candidate again whose weights or settings have changed."},
    )
    retry_failed: bool = field(default=False, metadata={"help": "Try again what failed in an earlier run."})

    def __post_init__(self):
        self.call_kwargs = parsed_call_kwargs(self.call_kwargs)
        if not self.candidates:
            raise ValueError(
                "there are no candidates: name one or several by --candidates, as in base tuned=runs/tuned"
            )
        for name, least in (
            ("seeds", 1),
            ("steps", 1),
            ("num_frames", 1),
            ("height", 1),
            ("width", 1),
            ("draws", 100),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
        if not 0 < self.level < 1:
            raise ValueError(f"--level lies between 0 and 1, got {self.level}")
        if not self.fps > 0:
            raise ValueError(f"--fps must be positive, got {self.fps}")
        if not self.tie >= 0:
            raise ValueError(f"--tie must not be negative, got {self.tie}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        names = [spec.name for spec in self.candidate_specs()]
        if self.against is not None and self.against not in names:
            raise ValueError(f"--against {self.against} is none of the candidates; they are {', '.join(names)}")
        measured = [spec.name for spec in self.metric_specs()]
        if DISTANCE in measured and self.references is None:
            raise ValueError(f"{DISTANCE} compares with real clips: give them by --references")
        if self.preference is not None and self.preference not in set(measured) - {DISTANCE}:
            raise ValueError(
                f"--preference {self.preference}: pairs are judged by a metric of single clips that is measured, one "
                f"of {', '.join(name for name in measured if name != DISTANCE)}"
            )

    def below(self, root: Path) -> EvaluateArguments:
        """The same job with paths that start at `root` where they lead nowhere from here."""

        def found(place: Any) -> Any:
            there = isinstance(place, str) and not Path(place).exists() and (root / place).exists()
            return str(root / place) if there else place

        candidates = {}
        for name, place, options in self.candidate_specs():
            options = {option: found(value) if option == "pipeline" else value for option, value in options.items()}
            candidates[name] = {"place": found(place), **options}
        paths = {name: found(getattr(self, name)) for name in ("pipeline", "prompts", "references")}
        return replace(self, candidates=candidates, **paths)  # type: ignore[arg-type]  # as YAML gives them

    def candidate_specs(self) -> list[Spec]:
        specs = parse_specs(self.candidates, "candidate", OPTIONS)
        for spec in specs:
            for option, kinds, what in _KINDS:
                value = spec.options.get(option)
                if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                    raise ValueError(f"candidate {spec.name}: {option}={value!r} is no {what}")
        return specs

    def metric_specs(self) -> list[Spec]:
        from ..metrics import path

        if self.metrics is None:
            told: Any = [*WEIGHTS_FREE, *([DISTANCE] if self.references is not None else [])]
        else:
            told = self.metrics
        specs = parse_specs(told, "metric")
        for spec in specs:
            path(spec.name)  # which raises where there is no such metric
            if spec.place is not None:
                raise ValueError(f"metric {spec.name}: options stand behind a comma, {spec.name},network={spec.place}")
        if not specs:
            raise ValueError(f"there is no metric: name some by --metrics, such as {' '.join(WEIGHTS_FREE)}")
        return specs


_KINDS = (
    ("guidance", (int, float), "number"),
    ("steps", int, "whole number"),
    ("scale", (int, float), "number"),
    ("pipeline", str, "folder or Hub id"),
)
