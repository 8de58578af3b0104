"""MotiveTrainer: a `transformers.Trainer` for the denoiser of any diffusers video pipeline.

rows      clips.choose          by influence, by a filter, or all
encoded   encodings             latents and text embeddings, once, on disk
drawn     draws                 which clip, which noise level, which noise: by the number of clips seen before
loss      PipelineStep.loss     the pipeline's own
saved     weights               as diffusers loads it
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import set_seed
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import speed_metrics

from ..corpus import undecoded
from ..encoded_columns import add_encodings
from ..encodings import ClipEncoder
from ..errors import NonFiniteError
from ..motion import DISFlow, MotionEstimator, MotionWeight
from ..pipelines import PipelineStep
from . import account
from .arguments import MotiveTrainingArguments
from .averages import Averaging
from .clips import Clip, TrainingClips, choose, collate, usable
from .compare import Comparison, compare
from .draws import DrawOrder, Draws
from .samples import Sampler
from .saving import DiffusersTrainer
from .sharding import check_sharding, sharded_by
from .staleness import check_scores, digests_of
from .validation import clip_losses, summary, validation_timesteps
from .weights import TrainedWeights

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from torch import Tensor, nn

    from ..hub import ModelFacts

T = TypeVar("T")

logger = logging.getLogger(__name__)


class MotiveTrainer(DiffusersTrainer):
    """Fine-tune a pipeline on the clips that its influence columns recommend, or on all.

    The loss is the pipeline's own, by `PipelineStep`; the clips' latents and text embeddings are computed once and
    kept on disk. What it saves is what diffusers loads. The text encoders and the VAE are never trained.

    Args:
        pipe: Any diffusers video pipeline. It is trained in place, and generates with what was learnt.
        args: The settings; None for the defaults.
        train_dataset: Rows with a video and a caption, with influence columns or without.
        eval_dataset: Held-out clips, such as queries that were not scored by: the validation loss is theirs.
        select: A row, its video undecoded, to whether it is trained on. In place of `args.fraction`, `args.count` and
            `args.min_votes`.
        peft_config: Train a LoRA. Without target modules (or "all-linear") it takes the attention's linear layers.
            None: all weights of the denoiser are trained, in float32.
        conditioning, call_kwargs, example: As `MotiveAttributor` takes them.
        estimator: What the motion mask is made with; None for DIS.
        video_column, caption_column: Columns of the row.
        base_model: For the card and for loading: the Hub id or folder of `pipe`. None: where it was loaded from.
        corpus, curated_dataset: For the card: what was trained on, and the Hub id of the selection.
        license: Of the model, as the Hub names it, for the card.
        callbacks, optimizers: As `Trainer` takes them.

    Raises:
        PipelineError: The pipeline cannot be used this way; the message says what did not hold.
        ValueError: No row is selected or usable, columns are missing, or (with `args.strict_scores`) the clips were
            scored with another model.

    Example:
        >>> args = MotiveTrainingArguments("runs/mine", fraction=0.1, num_train_epochs=50)
        >>> trainer = MotiveTrainer(pipe, args, scored, held_out)
        >>> trainer.train()
        >>> trainer.push_to_hub()
    """

    train_dataset: TrainingClips

    def __init__(
        self,
        pipe: Any,
        args: MotiveTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        *,
        select: Callable[[dict[str, Any]], bool] | None = None,
        peft_config: LoraConfig | None = None,
        conditioning: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        call_kwargs: Mapping[str, Any] | None = None,
        example: Mapping[str, Any] | None = None,
        estimator: MotionEstimator | None = None,
        video_column: str = "video",
        caption_column: str = "caption",
        base_model: str | None = None,
        corpus: str | None = None,
        curated_dataset: str | None = None,
        license: str | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        args = args or MotiveTrainingArguments(output_dir="runs/train")
        if train_dataset is None:
            raise ValueError("there is nothing to train on: give train_dataset=, rows with a video and a caption")
        if eval_dataset is None and str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
            raise ValueError(
                f"eval_strategy={args.eval_strategy!s} needs eval_dataset=: clips that are held out of the training"
            )
        if args.n_gpu > 1:
            logger.warning("one of %d GPUs is used: start by `accelerate launch` to use all of them", args.n_gpu)
            args._n_gpu = 1
        self.args = args = copy.copy(args)  # which is written to below: another trainer may be given it too
        self.columns: dict[str, Any] = {"video_column": video_column, "caption_column": caption_column}
        self.pipe = pipe.to(args.device)
        base = base_model or str(getattr(pipe, "_name_or_path", "") or pipe.config.get("_name_or_path", "") or "")
        self.base_is_hub = bool(base) and not Path(base).expanduser().exists()
        self.base_model = base if self.base_is_hub or not base else str(Path(base).expanduser().absolute())
        self.corpus, self.curated_dataset, self.license = corpus, curated_dataset, license
        self.peft_config, self.example = peft_config, dict(example or {})
        self.compared: Comparison | None = None
        if args.push_to_hub:  # before hours of encoding, too
            self.init_hf_repo()
        standard = args.clip_standard
        self.step = PipelineStep(
            pipe,
            num_frames=standard.num_frames,
            height=standard.height,
            width=standard.width,
            conditioning=conditioning,
            call_kwargs=call_kwargs,
            example=example,
        )
        self._loaded_dtype: Any = next(iter(self.step.denoisers.values())).dtype
        if self._loaded_dtype == torch.float16 and not args.fp16:
            raise ValueError(
                "the pipeline is in float16, whose gradients vanish: load it in bfloat16, or say fp16=True"
            )
        set_seed(args.seed)  # a LoRA is drawn: the same on every process, and in every run
        self.weights = TrainedWeights(pipe, denoiser=args.denoiser, peft_config=peft_config)
        check_sharding(args, self.weights.names)
        self._encoder = ClipEncoder(
            self.step,
            standard,
            weigh=MotionWeight(estimator or DISFlow(), self.step.latent_shape[1:]),
            require_caption=args.require_caption,
            **self.columns,
        )
        self._encoder.digest  # noqa: B018  once for all that is encoded
        chosen, self.selection = self._choose(train_dataset, select)
        self.scores = digests_of(chosen)
        self.clips_of = len(train_dataset)
        encoded = self._encoded(chosen, "training clips", masks=args.motion_weighted)
        clips = self._clips(_moving(encoded) if args.motion_weighted else encoded)
        self._validation = None
        if eval_dataset is not None:
            self._validation = self._clips(self._encoded(eval_dataset, "evaluation clips", masks=True))
        if args.sample_prompts and self.step.reads_rows and self._validation is None:
            raise ValueError(
                "sample_prompts: the pipeline is conditioned on a clip, and there is none to take it from: give "
                "eval_dataset="
            )
        self.eval_timesteps = validation_timesteps(self.step, args.eval_timesteps, self.weights.names)
        self.draws = Draws(
            args.seed,
            self.step.positions(args.denoiser),
            args.timestep_sampling,
            logit_mean=args.logit_mean,
            logit_std=args.logit_std,
            mode_scale=args.mode_scale,
            caption_dropout=args.caption_dropout,
        )
        self.clips_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if args.max_steps <= 0:  # transformers would round each epoch up, not their sum
            seen = args.clips_seen or args.num_train_epochs * len(clips)
            args.max_steps = max(1, math.ceil(seen / self.clips_a_step))
        self.averaging = Averaging(self.weights.module, decay=args.ema_decay) if args.ema else None
        self.sampler = Sampler(
            self.step, steps=args.sample_inference_steps, guidance=args.sample_guidance, fps=args.fps or 16.0
        )
        self._without_caption: dict[str, Any] | None = None  # what the frozen parts say of no caption
        self._of_this_step: list[Clip] = []
        self.loss_is_scaled_for_ga = False  # a batch's loss is its mean: Trainer divides it by the accumulation
        # The average first: a sample shows the weights of its step.
        own: list[TrainerCallback] = [*([self.averaging] if self.averaging else []), _Samples(self)]
        super().__init__(
            model=self.weights.module,
            args=args,
            data_collator=collate,
            train_dataset=clips,
            eval_dataset=self._validation,
            callbacks=[*own, *(callbacks or [])],
            optimizers=optimizers,
        )

    # -- what is trained on ----------------------------------------------------------------------------------------

    def _choose(self, dataset: Dataset, select: Any) -> tuple[Dataset, str | None]:
        args = self.args
        dataset = undecoded(dataset, **self.columns, name="train_dataset")
        by_rank = args.fraction is not None or args.count is not None
        by_influence = args.min_votes is not None or (by_rank and args.select_by.startswith("influence"))
        if by_influence or (select is not None and "influence" in dataset.column_names):
            check_scores(dataset, self.weights.base["model"], strict=args.strict_scores)
        return choose(dataset, args, select)

    def _encoded(self, dataset: Any, what: str, *, masks: bool) -> Dataset:
        """The clips' latents and text embeddings, and perhaps their motion masks."""
        encoder = copy.copy(self._encoder)  # which has digested the weights
        if not masks:
            encoder.weigh = None
        dataset = undecoded(dataset, **self.columns, name=f"the {what}")
        return usable(add_encodings(dataset, encoder, cache_dir=self.args.encodings), what)

    def _clips(self, encoded: Dataset) -> TrainingClips:
        standard = self.args.clip_standard if self.step.reads_rows else None
        return TrainingClips(encoded, standard=standard, **self.columns)

    def _get_train_sampler(self, train_dataset: Any = None) -> DrawOrder:
        done = lambda: self.state.global_step  # noqa: E731
        return DrawOrder(len(self.train_dataset), self.clips_a_step, self.args.seed, done)

    # -- a step ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch's clips."""
        clips: list[Clip] = inputs["clips"]

        def each_loss() -> Tensor:
            with self._precision():  # in here, for a wrapper may have put an end to what was outside of it
                return torch.stack([self.clip_loss(clip) for clip in clips])

        losses = model(each_loss)
        self._of_this_step += clips
        self._check_finite(losses.detach())
        loss = losses.mean()
        return (loss, losses) if return_outputs else loss

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """A pipeline computes in the precision that it was loaded in, though the trained weights are float32; one in
        float32 in what `args.bf16` or Accelerate's settings say."""
        if self._loaded_dtype == torch.float32:
            with self.accelerator.autocast():
                yield
        else:
            with torch.autocast(self.args.device.type, dtype=self._loaded_dtype):
                yield

    @property
    def precision(self) -> str:
        """What the denoiser computes in."""
        told = {"bf16": "bfloat16", "fp16": "float16"}.get(self.accelerator.mixed_precision, "float32")
        return told if self._loaded_dtype == torch.float32 else str(self._loaded_dtype).removeprefix("torch.")

    def clip_loss(self, clip: Clip) -> Tensor:
        """The loss of one showing of a clip, scalar, with its graph: what the draw's number makes it."""
        draw = self.draws(clip.draw)
        caption, answers = clip.caption, clip.answers
        if draw.without_caption:
            if self._without_caption is None:
                with torch.autocast(self.args.device.type, enabled=False):
                    said = self.step.answers("", clip.example)
                self._without_caption = {question: said[question] for question in said if question not in answers}
            caption, answers = "", {**self._without_caption, **answers}
        return self.step.loss(
            clip.latents,
            caption,
            noise=self.step.noise(draw.seed),
            timestep=self.step.scheduled(draw.position),
            weight=clip.weight if self.args.motion_weighted else None,
            example=clip.example,
            answers=answers,
            seed=draw.call_seed,
        ).loss

    def _check_finite(self, losses: Tensor) -> None:
        """Stop every process where one has a loss that is not finite: the optimizer has not stepped on it yet."""
        bad = (~torch.isfinite(losses)).any().float()
        if self.args.world_size > 1:
            bad = self.accelerator.reduce(bad, reduction="sum")
        if bad:
            self._stop(f"the loss is not finite at step {self.state.global_step + 1}")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # A scaler of float16 meets infinite gradients now and then, and skips the step itself.
        # And DeepSpeed has stepped already, and has a norm only where it did.
        known = norm is not None and self.accelerator.scaler is None
        if known and not math.isfinite(float(norm)):
            self._stop(f"the gradient is not finite at step {self.state.global_step + 1}")
        self._of_this_step.clear()
        return norm

    def _stop(self, found: str) -> None:
        """Raise `NonFiniteError`, with the weights before this step saved."""
        from accelerate.utils import broadcast_object_list, gather_object

        named = []
        for clip in self._of_this_step:
            timestep = self.step.scheduled(self.draws(clip.draw).position).timestep
            named.append(f"{self.train_dataset.name(clip.row)} (timestep {timestep:.4g})")
        if self.args.world_size > 1:
            named = gather_object(named)
        kept = ""
        if self.args.save_strategy != "no" and not self.is_deepspeed_enabled:
            folder = self.output / f"checkpoint-{self.state.global_step}"
            # Asked once for all: a process that looks later finds what another has written.
            if not broadcast_object_list([(folder / "trainer_state.json").exists()])[0]:
                self._save_checkpoint(self.weights.module, trial=None)
            kept = f" The weights before this step, the last good ones, are in {folder}."
        self.accelerator.wait_for_everyone()  # the first that raises ends all, in the middle of a file too
        raise NonFiniteError(
            f"{found}: {', '.join(named)}.{kept} Look at these clips; a lower learning rate (in another "
            "output_dir: a checkpoint goes on with its own), max_grad_norm, and bf16 in place of fp16 usually help"
        )

    # -- how far it has come ---------------------------------------------------------------------------------------

    def _ask(self, task: Callable[[], T]) -> T:
        """Do what asks the denoiser, inside the wrapper's forward where its weights come together only there."""

        def precisely() -> T:
            with self._precision():
                return task()

        return self.model_wrapped(precisely) if self._is_sharded else precisely()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The validation loss.

        Args:
            eval_dataset: Rows with a video and a caption, in place of the trainer's.

        Returns:
            `eval_motion_loss`, weighted by the motion mask and averaged over clips and `args.eval_timesteps`;
            `eval_motion_loss_t<timestep>`; `eval_loss`, without the weight; how long it took.
        """
        from accelerate.utils import gather_object

        clips = self._validation
        if eval_dataset is not None and eval_dataset is not self._validation:
            clips = self._clips(self._encoded(eval_dataset, "evaluation clips", masks=True))
        if clips is None:
            raise ValueError("there is nothing to evaluate on: give eval_dataset=, rows with a video and a caption")
        started, state = time.time(), self.args
        rows = range(state.process_index, len(clips), state.world_size)
        turns = math.ceil(len(clips) / state.world_size) if self._is_sharded else len(rows)  # all must ask as often
        found = []
        with self._as_saved():
            for turn in range(turns):
                row = rows[turn] if turn < len(rows) else 0
                clip = clips[0, row]
                task = partial(clip_losses, self.step, clip, self.eval_timesteps, state.seed)
                found.append((row, self._ask(task).tolist()))
        every = sorted((gather_object if state.world_size > 1 else list)(found[: len(rows)]))
        losses = torch.tensor([losses for _, losses in every])
        metrics = summary(losses, self.eval_timesteps, metric_key_prefix)
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(clips))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def sample(self) -> Path | None:
        """Generate `args.sample_prompts`, or the captions of the first evaluation clips, as mp4 files.

        Returns:
            The folder, `samples/step-<n>` in the output folder; None where nothing is asked for.
        """
        captions, examples = self._to_sample()
        if not captions:
            return None
        folder = self.output / "samples" / f"step-{self.state.global_step:06d}"
        if self._is_sharded or self.args.should_save:
            with self._as_saved():
                where = folder if self.args.should_save else None
                self._ask(partial(self.sampler.write, where, captions, examples))
        self.accelerator.wait_for_everyone()
        return folder

    def show(self) -> None:
        """Put the samples from before the training and of now side by side, where there are both."""
        before, after = (self.output / "samples" / f"step-{step:06d}" for step in (0, self.state.global_step))
        if not self.args.should_save or before == after or not (before.exists() and after.exists()):
            return
        try:
            self.compared = compare(before, after, after.with_name("compare"), root=self.output)
        except ValueError as error:  # clips that could not be generated end no training
            logger.warning("There is nothing to show side by side: %s", error)

    def _to_sample(self) -> tuple[list[str], list[Mapping[str, Any]]]:
        """Captions, and the rows that they are of: a pipeline may be conditioned on more than its caption."""
        prompts, clips = self.args.sample_prompts, self._validation
        if clips is None:
            return list(prompts or []), [{} for _ in prompts or []]
        count = min(len(clips), len(prompts) if prompts else self.args.sample_count)
        shown = [clips[0, row] for row in range(count)]
        captions = list(prompts) if prompts else [clip.caption for clip in shown]
        if not self.step.reads_rows:
            return captions, [{} for _ in captions]
        return captions[:count], [clip.example for clip in shown]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs["clips_seen"] = seen = self.state.global_step * self.clips_a_step
        if self.state.epoch is not None:  # Trainer's are whole steps, and a little longer than the clips
            self.state.epoch = seen / len(self.train_dataset)
        super().log(logs, start_time)

    # -- what it is ------------------------------------------------------------------------------------------------

    def facts(self) -> ModelFacts:
        """What the card tells."""
        return account.facts(self)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What decides which clips are seen when, and how: a checkpoint of another plan is not gone on with."""
        args, dataset = self.args, self.train_dataset.dataset
        columns = [self.columns["caption_column"], "encoded_settings"]
        said = [self.train_dataset.names(), *(dataset[column][:] for column in columns)]
        return {
            "clips": hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16],
            "clips a step": self.clips_a_step,
            "seed": args.seed,
            "denoiser": args.denoiser,
            "timestep_sampling": [args.timestep_sampling, args.logit_mean, args.logit_std, args.mode_scale],
            "learning_rate": args.learning_rate,  # the scheduler's state would win over another, without a word
            "caption_dropout": args.caption_dropout,
            "motion_weighted": args.motion_weighted,
            "sharded by": sharded_by(args),  # and so is the optimizer's state
        }


class _Samples(TrainerCallback):
    """Generates before the first step, every so many steps, and after the last; then shows first and last together."""

    def __init__(self, trainer: MotiveTrainer):
        self.trainer, self.begun = trainer, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and not self.begun:  # a second training begins with what the first one left
            self.trainer.sample()
        self.begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = args.sample_steps and state.global_step % args.sample_steps == 0
        if due and state.global_step < state.max_steps:
            self.trainer.sample()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.sample()
        self.trainer.show()


def _moving(dataset: Dataset) -> Dataset:
    """The rows that have a motion mask, by which the loss is to be weighted."""
    rows = [row for row, status in enumerate(dataset["encoded_mask"]) if status == "ok"]
    if not rows:
        raise ValueError("motion_weighted: in none of the clips does anything move")
    if len(rows) < len(dataset):
        left = len(dataset) - len(rows)
        logger.warning("%d clips are left out: nothing moves in them, and the loss is weighted by motion", left)
    return dataset.select(rows)
