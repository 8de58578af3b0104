"""The settings of a fine-tuning: those of transformers' `TrainingArguments`, and what clips and diffusion add."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SchedulerType

from ..video import ClipStandard


@dataclass
class MotiveTrainingArguments(TrainingArguments):
    """`TrainingArguments`, with defaults for fine-tuning a video pipeline as the paper does (arXiv 2601.08828).

    The order of the clips, and each clip's timestep, noise and dropped captions, follow from `seed` and the number of
    clips seen before it: not from the number of processes, the batch size or a restart. Every optimizer step sees
    `per_device_train_batch_size` × processes × `gradient_accumulation_steps` clips, the last one of an epoch too: an
    epoch is filled up with the first clips of the next.

    Raises:
        ValueError: A value is out of its range, or two contradict each other.
    """

    # Other defaults than transformers'.
    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "Clips a process takes at a time: their graphs are held together."}
    )
    num_train_epochs: float = field(
        default=50.0,
        metadata={"help": "How often each clip is seen (the paper: 50). --max_steps or --clips_seen go before it."},
    )
    learning_rate: float = field(
        default=1e-5, metadata={"help": "Of AdamW (the paper: 1e-5, all weights). A LoRA wants some ten times more."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="constant_with_warmup", metadata={"help": "How the learning rate changes over the run."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Print loss and learning rate every so many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep so many checkpoints, the latest; a video model's are large."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "With --push_to_hub: publish at the 'end', or at 'every_save' too."}
    )
    ddp_timeout: int = field(
        default=14 * 24 * 3600,
        metadata={"help": "Seconds that processes wait for each other: one may be generating, encoding or uploading."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no effect: rows are read as needed."})

    # The clips.
    num_frames: int = field(default=81, metadata={"help": "Frames of a clip, counted from its start."})
    height: int = field(default=480, metadata={"help": "Pixels: the clip is resized to cover, then centre cropped."})
    width: int = field(default=832, metadata={"help": "Pixels: the clip is resized to cover, then centre cropped."})
    fps: float | None = field(
        default=16.0, metadata={"help": "Frames per second, resampled by time stamps. 'null' takes all frames."}
    )
    fraction: float | None = field(
        default=None, metadata={"help": "Train on this best share of the clips that have a score. None: on all clips."}
    )
    count: int | None = field(default=None, metadata={"help": "Train on so many best clips."})
    min_votes: int | None = field(
        default=None, metadata={"help": "Train on the clips that at least so many queries vote for."}
    )
    select_by: str = field(
        default="influence_rank", metadata={"help": "The column that --fraction and --count go by."}
    )
    strict_scores: bool = field(
        default=False,
        metadata={"help": "Stop, instead of warning, where the clips were scored with another model than this one."},
    )
    require_caption: bool = field(
        default=True, metadata={"help": "Leave out a clip without a caption. False: train on it with an empty one."}
    )
    encodings: str | None = field(
        default=None,
        metadata={"help": "Folder of the clips' latents and text embeddings. None: the datasets cache."},
    )

    # The loss.
    denoiser: str | None = field(
        default=None,
        metadata={
            "help": "Which denoiser is trained, where the pipeline has several, e.g. 'transformer_2', at the noise "
            "levels at which the pipeline asks it. None: all of them."
        },
    )
    timestep_sampling: Literal["uniform", "logit_normal", "mode"] = field(
        default="uniform",
        metadata={
            "help": "Where on the pipeline's own schedule, shifts included, a clip is noised: everywhere alike, or by "
            "the densities of diffusers' compute_density_for_timestep_sampling."
        },
    )
    logit_mean: float = field(default=0.0, metadata={"help": "Of --timestep_sampling logit_normal."})
    logit_std: float = field(default=1.0, metadata={"help": "Of --timestep_sampling logit_normal."})
    mode_scale: float = field(default=1.29, metadata={"help": "Of --timestep_sampling mode."})
    caption_dropout: float = field(
        default=0.1, metadata={"help": "Share of the steps in which a clip is seen without its caption, for guidance."}
    )
    motion_weighted: bool = field(
        default=False, metadata={"help": "Weight the training loss by the motion mask. (Not the paper's.)"}
    )
    ema: bool = field(
        default=False,
        metadata={
            "help": "Average the weights over the steps: the average is what is evaluated, sampled and, at the end, "
            "saved. A checkpoint holds both."
        },
    )
    ema_decay: float = field(default=0.9999, metadata={"help": "How slowly the average follows, reached by warm-up."})
    clips_seen: int | None = field(
        default=None,
        metadata={
            "help": "Train until so many clips were seen (repeats count), rounded up to whole optimizer steps: for "
            "comparing selections of different sizes at equal cost."
        },
    )

    # Evaluation and samples.
    eval_timesteps: list[float] | None = field(
        default=None,
        metadata={
            "help": "Noise levels, 0 to 1000, of the validation loss, always with the same noise. None: 250, 500 and "
            "750; of a pipeline with several denoisers, three for each that is trained."
        },
    )
    sample_steps: int = field(
        default=0,
        metadata={"help": "Generate clips every so many optimizer steps. 0: before and after the training alone."},
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "What to generate. None: the captions of the first evaluation clips."}
    )
    sample_count: int = field(
        default=4, metadata={"help": "How many clips to generate where no prompts are given. 0: none."}
    )
    sample_inference_steps: int = field(default=30, metadata={"help": "Denoising steps of a generated clip."})
    sample_guidance: float | None = field(
        default=None, metadata={"help": "Guidance scale of a generated clip. None: the pipeline's own default."}
    )
    save_pipeline: bool = field(
        default=False,
        metadata={
            "help": "Save the whole pipeline, not the trained denoiser alone, so that from_pretrained needs no other. "
            "Checkpoints hold the denoiser. No effect with a LoRA."
        },
    )

    def __post_init__(self):
        import torch

        if not torch.accelerator.is_available():
            self.use_cpu = True  # several processes of a CPU would each think itself alone
        super().__post_init__()
        for name, low, high in (("caption_dropout", 0, 1), ("ema_decay", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {getattr(self, name)}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        for name in ("count", "min_votes", "clips_seen", "sample_inference_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if (self.fraction is not None) + (self.count is not None) + (self.min_votes is not None) > 1:
            raise ValueError("choose the clips by one of fraction, count and min_votes")
        if self.clips_seen is not None and self.max_steps > 0:
            raise ValueError("clips_seen and max_steps both say how long to train: give one of them")
        if self.timestep_sampling not in ("uniform", "logit_normal", "mode"):
            raise ValueError(
                f"timestep_sampling must be uniform, logit_normal or mode, got {self.timestep_sampling!r}"
            )
        if self.eval_timesteps is not None:
            self.eval_timesteps = [float(timestep) for timestep in self.eval_timesteps]
            if not self.eval_timesteps or not all(0 <= timestep <= 1000 for timestep in self.eval_timesteps):
                raise ValueError(f"eval_timesteps must be one or more numbers in [0, 1000], got {self.eval_timesteps}")
        if self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size would change how many clips a step sees in the middle of the run: take "
                "per_device_train_batch_size=1 and gradient_accumulation_steps"
            )
        if self.torch_compile:
            raise ValueError(
                "torch_compile wraps what it cannot: compile the denoiser itself, pipe.transformer.compile()"
            )
        if getattr(self.accelerator_config, "split_batches", False):
            raise ValueError("split_batches has no use here: per_device_train_batch_size is what a process takes")
        if self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last has no use here: every batch is full, and no clip is dropped")
        if str(self.train_sampling_strategy) != "random":
            raise ValueError("train_sampling_strategy has no use here: all clips have one length")

    @property
    def clip_standard(self) -> ClipStandard:
        """What every clip is brought to."""
        return ClipStandard(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)
