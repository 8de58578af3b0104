"""The second job: a scored corpus and its pipeline to a fine-tuned one.

`hf-motive train` and `examples/train.py` are its command lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl import ModelConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from .training import MotiveTrainer, MotiveTrainingArguments


@dataclass
class TrainArguments:
    """What to train on, and what a card is to say of it."""

    dataset: str = field(
        metadata={
            "help": "The clips: the output folder of `hf-motive score` or of `hf-motive select`, or clips in any form "
            "that `score` takes as its corpus."
        }
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Clips that are held out, for the validation loss and for captions to generate."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "Take the first so many clips of the dataset: to try something out quickly."}
    )
    eval_limit: int | None = field(
        default=None, metadata={"help": "Take the first so many clips of the evaluation dataset."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    eval_split: str = field(default="train", metadata={"help": "Split of the evaluation dataset."})
    video_column: str = field(default="video", metadata={"help": "Column of the video."})
    caption_column: str = field(default="caption", metadata={"help": "Column of the caption."})
    call_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Further arguments of the pipeline's call, the same for every clip, as JSON or a mapping."},
    )
    curated_dataset: str | None = field(
        default=None, metadata={"help": "Hub id of the clips that are trained on, for the card."}
    )
    license: str | None = field(default=None, metadata={"help": "Of the model, as the Hub names it; for the card."})
    threads: int = field(
        default=0, metadata={"help": "CPU threads a process. 0: the machine's cores, shared out among its processes."}
    )

    def __post_init__(self):
        from .scoring import parsed_call_kwargs

        self.call_kwargs = parsed_call_kwargs(self.call_kwargs)


@dataclass
class PipelineConfig(ModelConfig):
    """TRL's `ModelConfig`, of a pipeline: which one, and whether a LoRA is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Diffusers video pipeline: a local folder or a Hub id."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default="auto", metadata={"help": "To load it in. 'auto': bfloat16 on a GPU, float32 on a CPU."}
    )
    lora_task_type: str | None = field(
        default=None, metadata={"help": "Leave it: a denoiser is none of PEFT's tasks."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})

    def __post_init__(self):
        super().__post_init__()
        if not self.model_name_or_path:
            raise ValueError("which pipeline is to be trained? Say --model_name_or_path, a folder or a Hub id")
        for name in ("load_in_8bit", "load_in_4bit", "attn_implementation"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is not supported: load such a pipeline in Python, and give it to MotiveTrainer"
                )


def train(arguments: TrainArguments, training: MotiveTrainingArguments, model: PipelineConfig) -> MotiveTrainer:
    """Fine-tune, save, and say how to load what was learnt and how to publish it.

    Runs on every process that Accelerate launched. Stopped and started again it goes on from its last checkpoint,
    unless `--resume_from_checkpoint no` says otherwise.

    Returns:
        The trainer, after training.
    """
    import torch
    from trl import get_peft_config

    from .processes import threads_of_a_process
    from .scoring import load_pipeline, quiet
    from .training import MotiveTrainer
    from .training.account import describe, report
    from .training.plan import last_checkpoint

    quiet()
    torch.set_num_threads(arguments.threads or threads_of_a_process())
    columns = {"video_column": arguments.video_column, "caption_column": arguments.caption_column}
    with training.main_process_first():
        dataset = _first(load_scored_clips(arguments.dataset, arguments.dataset_split, columns), arguments.limit)
        held_out = None
        if arguments.eval_dataset is not None:
            held_out = load_scored_clips(arguments.eval_dataset, arguments.eval_split, columns)
            held_out = _first(held_out, arguments.eval_limit)
    pipe = load_pipeline(str(model.model_name_or_path), model.dtype or "auto", training.device)
    trainer = MotiveTrainer(
        pipe,
        training,
        dataset,
        held_out,
        peft_config=get_peft_config(model),
        call_kwargs=arguments.call_kwargs or {},
        base_model=model.model_name_or_path,
        corpus=arguments.dataset,
        curated_dataset=arguments.curated_dataset,
        license=arguments.license,
        **columns,
    )
    if training.should_save:
        print(describe(trainer), flush=True)
    resume: Any = training.resume_from_checkpoint
    if resume in (None, "True", "true", "yes"):
        resume = last_checkpoint(str(training.output_dir))
    elif resume in ("False", "false", "no"):
        resume = None
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if training.push_to_hub:
        url = trainer.push_to_hub()
        if training.should_save:
            print(f"Published: {url}")
    if training.should_save:
        print(report(trainer), flush=True)
    return trainer


def load_scored_clips(source: str, split: str, columns: dict[str, Any]) -> Dataset:
    """The folder of a scoring, or clips in any other form, as a dataset on disk.

    Raises:
        ValueError: They are a stream.
    """
    from datasets import Dataset

    from .corpus import load_clips
    from .scoring import load_run

    folder = Path(source).expanduser()
    is_run = (folder / "influence.parquet").exists() or (folder / "index").is_dir()
    found = load_run(folder) if is_run else load_clips(source, split=split, **columns)
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{source} is a stream, and training takes its clips in an order of its own: write those that you want to "
            "disk first, `hf-motive select SOURCE --output FOLDER`"
        )
    return found


def _first(dataset: Dataset, limit: int | None) -> Dataset:
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
