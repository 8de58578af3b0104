"""Every setting of an attribution in one place: command line, YAML file and `MotiveAttributor` read it here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from .video import ClipStandard

#: What settings are that nobody gave. "motive" departs from "paper" where retraining says so (docs/faithfulness.md).
PRESETS: dict[str, dict[str, Any]] = {
    "motive": {"timesteps": [500.0, 751.0, 900.0]},
    "paper": {"timesteps": [751.0]},
}


@dataclass
class AttributionConfig:
    """What a clip's feature depends on.

    The defaults are the paper's (arXiv 2601.08828) but for what `PRESETS` says; with `preset="paper"` all are.

    Two features may be compared only when every setting here is the same for both; `GradientIndex` sees to that.
    """

    num_frames: int = field(
        default=81,
        metadata={
            "help": "Frames of the standard clip, counted from the clip's start. A shorter clip is left unranked. "
            "The pipeline's VAE decides which counts are possible (4k+1 for Wan)."
        },
    )
    height: int = field(default=480, metadata={"help": "Pixels: the clip is resized to cover, then centre cropped."})
    width: int = field(default=832, metadata={"help": "Pixels: the clip is resized to cover, then centre cropped."})
    fps: float | None = field(
        default=16.0,
        metadata={
            "help": "Frames per second of the standard clip, resampled by time stamps. 'null' takes all frames."
        },
    )
    timesteps: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Noise levels on the scheduler's training scale of 0 to 1000. Clips and queries are compared at "
            "equal ones, and the mean is taken: truer than one, and as many times the cost. Left out: 500, 751 and "
            "900; with --preset paper 751 alone."
        },
    )
    noise_draws: int = field(
        default=1,
        metadata={
            "help": "Noise draws a timestep, shared by all clips (the paper: 1). More make ranks surer, and tell more "
            "surely how sure they are."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the noise and of the projection."})
    projection_dim: int = field(
        default=512, metadata={"help": "D' of the projection: a power of two. More is truer and larger."}
    )
    projection: Literal["fastfood", "factored"] = field(
        default="fastfood",
        metadata={
            "help": "'fastfood' projects each gradient (the paper). 'factored' projects both sides of linear layers, "
            "whose gradients are then never formed: less time and memory, nearly the same ranks."
        },
    )
    motion_weighted: bool = field(
        default=True,
        metadata={"help": "Weight the loss by the motion mask (the paper). False: the whole clip's gradient."},
    )
    center_error: bool = field(
        default=False,
        metadata={
            "help": "Take off the denoiser's error what is the same in all latent frames: more of the best clips then "
            "share the queries' motion, and fewer their looks (docs/faithfulness.md; not in the paper)."
        },
    )
    flow_reference: Literal["neighbour", "first"] = field(
        default="neighbour",
        metadata={"help": "Flow from each frame to the next ('neighbour') or from the first frame ('first')."},
    )
    flow_preset: str = field(
        default="medium",
        metadata={"help": "OpenCV DIS preset: 'ultrafast', 'fast' or 'medium' (see benchmarks/results/flow.md)."},
    )
    flow_confidence: bool = field(
        default=False,
        metadata={"help": "Multiply the motion by the estimator's confidence, where it has one (not in the paper)."},
    )
    compensate_camera: bool = field(
        default=False, metadata={"help": "Subtract the camera's motion from the flow before its magnitude is taken."}
    )
    parameters: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression of the denoiser parameters that count, e.g. 'lora_' or 'blocks\\.2[0-9]'. "
            "None: all of them (the paper)."
        },
    )
    require_caption: bool = field(
        default=True,
        metadata={"help": "Leave a clip without a caption unranked. False: score it with an empty prompt."},
    )
    preset: Literal["motive", "paper"] = field(
        default="motive",
        metadata={
            "help": "What settings that are not given are. 'paper': the paper's, to the letter. 'motive': these, but "
            "for what retraining supports: several timesteps."
        },
    )

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, value in PRESETS[self.preset].items():
            if not getattr(self, name):
                setattr(self, name, value)
        self.timesteps = [float(t) for t in self.timesteps]
        if not self.timesteps or not all(0 <= t <= 1000 for t in self.timesteps):
            raise ValueError(f"timesteps must be one or more numbers in [0, 1000], got {self.timesteps}")
        if self.noise_draws < 1:
            raise ValueError(f"noise_draws must be at least 1, got {self.noise_draws}")
        if self.projection not in ("fastfood", "factored"):
            raise ValueError(f"projection must be 'fastfood' or 'factored', got {self.projection!r}")
        if self.flow_reference not in ("neighbour", "first"):
            raise ValueError(f"flow_reference must be 'neighbour' or 'first', got {self.flow_reference!r}")
        self.standard  # noqa: B018  ClipStandard checks frames, size and rate

    @property
    def draws(self) -> int:
        """K: how many (timestep, noise) pairs a feature is made of."""
        return len(self.timesteps) * self.noise_draws

    @property
    def standard(self) -> ClipStandard:
        """The frame count, size and rate that every clip is brought to."""
        return ClipStandard(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AttributionConfig:
        """The config of a mapping, e.g. of a YAML file. Raises TypeError for an unknown name, with the known ones."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise TypeError(f"unknown setting {unknown[0]!r}; the settings are {', '.join(known)}")
        return cls(**values)
