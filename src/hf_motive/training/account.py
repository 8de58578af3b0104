"""What a training says of itself: before it starts, when it is over, and on its model's card."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..pipelines.conditioning import FRAME_ARGUMENTS

if TYPE_CHECKING:
    from ..hub.model_card import ModelFacts
    from .trainer import MotiveTrainer


def describe(trainer: MotiveTrainer) -> str:
    """One sentence on what is about to happen."""
    args, weights = trainer.args, trainer.weights
    what = "a LoRA for" if weights.kind == "lora" else "all weights of"
    clips = len(trainer.train_dataset)
    seen = args.max_steps * trainer.clips_a_step
    chosen = f" ({trainer.selection.rstrip('.')})" if trainer.selection else ""
    return (
        f"Training {what} the {' and '.join(weights.names)} of {type(trainer.pipe).__name__}, {weights.count:,} "
        f"parameters, on {clips} clips{chosen}: {args.max_steps} steps of {trainer.clips_a_step} clips, each clip "
        f"seen {seen / clips:.3g} times. Into {args.output_dir}"
    )


def report(trainer: MotiveTrainer) -> str:
    """What came of it, and what to do with it."""
    args = trainer.args
    lines = []
    found = [entry for entry in trainer.state.log_history if "eval_motion_loss" in entry]
    if len(found) > 1:
        first, last = found[0], found[-1]
        for name, meaning in (("eval_motion_loss", "motion-weighted"), ("eval_loss", "plain")):
            change = last[name] / first[name] - 1
            lines.append(
                f"Validation loss, {meaning}: {first[name]:.5g} at step {first['step']}, {last[name]:.5g} at step "
                f"{last['step']} ({change:+.2%})"
            )
    page = trainer.output / "samples" / "compare" / "index.html"
    if page.exists():
        lines.append(f"Before and after, side by side: {page}")
    lines += [
        f"The model is in {args.output_dir}. To load it:",
        *(f"    {line}" for line in trainer.how_to_load().splitlines()),
        f"To publish it, with its card: hf-motive push {args.output_dir} me/my-model",
    ]
    return "\n".join(lines)


def facts(trainer: MotiveTrainer) -> ModelFacts:
    """What the model's card tells."""
    from ..hub.model_card import ModelFacts

    args, weights, state = trainer.args, trainer.weights, trainer.state
    seen = state.global_step * trainer.clips_a_step
    history = state.log_history
    training: dict[str, Any] = {
        "optimizer steps": state.global_step,
        "clips seen": seen,
        "times each clip was seen": round(seen / len(trainer.train_dataset), 3),
        "clips a step": trainer.clips_a_step,
        "processes": args.world_size,
        "learning rate": args.learning_rate,
        "learning rate schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "weight decay": args.weight_decay,
        "gradient norm at most": args.max_grad_norm,
        "precision": trainer.precision,
        "frames, height, width, frames a second": f"{args.num_frames}, {args.height}, {args.width}, {args.fps}",
        "timesteps": args.timestep_sampling,
        "caption dropout": args.caption_dropout,
        "loss weighted by motion": args.motion_weighted,
        "average of the weights": f"decay {args.ema_decay}" if args.ema else "no",
        "seed": args.seed,
    }
    over = state.global_step >= state.max_steps or trainer.control.should_training_stop
    if args.load_best_model_at_end and state.best_global_step and over:  # until then they are the latest
        training["the best step, whose weights these are"] = state.best_global_step
    if trainer.peft_config is not None:
        lora = trainer.peft_config
        training |= {"LoRA rank": lora.r, "LoRA alpha": lora.lora_alpha, "LoRA dropout": lora.lora_dropout}
    return ModelFacts(
        base_model=trainer.base_model,
        base_is_hub=trainer.base_is_hub,
        pipeline_class=type(trainer.pipe).__name__,
        pipeline_tag=_tag(trainer),
        kind=weights.kind,
        components=list(weights.names),
        how_to_load=trainer.how_to_load("{repo_id}"),
        corpus=trainer.corpus,
        clips=len(trainer.train_dataset),
        clips_of=trainer.clips_of,
        selection=trainer.selection,
        curated_dataset=trainer.curated_dataset,
        scores=trainer.scores,
        training=training,
        metrics=[_metrics(entry) for entry in history if any(name.startswith("eval_") for name in entry)],
        losses=[[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        samples=trainer.compared.samples if trainer.compared else [],
        pictures=trainer.compared.strip if trainer.compared else None,
        license=trainer.license,
        versions={name: version(name) for name in ("hf-motive", "torch", "diffusers", "transformers", "peft")},
    )


def _metrics(entry: dict[str, Any]) -> dict[str, Any]:
    """The losses; how long it took is nobody's business on a card."""
    return {
        name: value for name, value in entry.items() if name == "step" or name.endswith("loss") or "loss_t" in name
    }


def _tag(trainer: MotiveTrainer) -> str:
    """The Hub's name of the task: what is generated from, beside a caption."""
    clip = trainer.train_dataset[0, 0]
    taken = set(trainer.step.generation(clip.caption, clip.example))
    if any("image" in name for name in taken):
        return "image-to-video"
    return "video-to-video" if any("video" in name for name in taken - {*FRAME_ARGUMENTS}) else "text-to-video"
