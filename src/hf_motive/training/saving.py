"""A Trainer whose checkpoints and results are what diffusers loads, and which publishes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from .plan import check_plan, last_checkpoint, write_plan
from .sharding import gathered

if TYPE_CHECKING:
    from torch import nn

    from ..hub import ModelFacts
    from .arguments import MotiveTrainingArguments
    from .averages import Averaging
    from .weights import TrainedWeights


logger = logging.getLogger(__name__)


class DiffusersTrainer(Trainer):
    """What `Trainer` does for models of transformers, done for the denoisers of a diffusers pipeline.

    Attributes:
        pipe: The pipeline.
        weights: What of it is trained.
        averaging: The moving average of that, or None.
        base_model: Folder or Hub id of the pipeline as it was.
        license: Of the model, or None.
    """

    args: MotiveTrainingArguments
    pipe: Any
    weights: TrainedWeights
    averaging: Averaging | None
    base_model: str
    license: str | None

    @property
    def plan(self) -> Mapping[str, Any]:
        """JSON values that a checkpoint must have in common with the training that goes on from it."""
        raise NotImplementedError

    def show(self) -> None:
        """Show what came of the training, when it is over."""

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(str(self.args.output_dir))

    def facts(self) -> ModelFacts:
        """What the card tells."""
        raise NotImplementedError

    @property
    def _is_sharded(self) -> bool:
        """Whether no process holds all weights: then all must take part in whatever asks the denoiser."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The weights that are evaluated, sampled and published: the averages, where there are some."""
        training = self.weights.module.training
        self.weights.module.eval()
        try:
            with self.averaging.applied() if self.averaging else nullcontext():
                yield
        finally:
            self.weights.module.train(training)

    # -- what is saved ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: A checkpoint, or True: the last one in the output folder that is whole. One whose
                training is over is loaded, and nothing is trained.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.output)
            if resume_from_checkpoint is None:
                raise ValueError(f"there is no whole checkpoint in {self.output}: start without resuming")
        if isinstance(resume_from_checkpoint, str):
            path = Path(resume_from_checkpoint) / "trainer_state.json"
            if not path.is_file():
                raise ValueError(
                    f"{resume_from_checkpoint} is no checkpoint, or not a whole one: resume from another, or by "
                    "resume_from_checkpoint=True from the last that is whole"
                )
            state = TrainerState.load_from_json(str(path))
            if state.global_step >= self.args.max_steps:
                of = f"step {state.global_step} of {self.args.max_steps}"
                logger.warning("%s is at %s: it is loaded, and nothing is left to train", path.parent, of)
                best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
                self._load_from_checkpoint(best if best and Path(best).is_dir() else resume_from_checkpoint)
                self.state = state
                self.show()
                return TrainOutput(state.global_step, float("nan"), {})
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what diffusers loads, of the averages where there are some, with its card; `how_to_load` says how.

        Args:
            output_dir: None for the output folder.
        """
        folder = self.output if output_dir is None else Path(output_dir)
        if _internal_call:  # a checkpoint, from which the training goes on
            self._save_weights(folder)
            if self.averaging is not None:
                self.averaging.save(folder)
            if self.args.should_save:
                write_plan(folder, self.plan)
            return
        with self._as_saved():
            self._save_weights(folder)
            if self.args.should_save and self.args.save_pipeline and self.weights.kind == "full":
                self._save_pipeline(folder)
        if self.args.should_save:
            self.create_model_card(folder=folder)
        self.accelerator.wait_for_everyone()

    def _save_pipeline(self, folder: Path) -> None:
        """What else the pipeline has, beside the denoisers that `_save_weights` has put together and written."""
        parts = [vars(part) for part in self.weights.module.values()]
        try:
            for part in parts:
                part["save_pretrained"] = lambda *_, **__: None
            self.pipe.save_pretrained(folder)
        finally:
            for part in parts:
                part.pop("save_pretrained", None)

    def _save_weights(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # each process may write into it
        if self.is_fsdp_enabled:
            whole = gathered(self.model, trained=self.weights.kind == "lora", keep=self.args.should_save)
            self._save(str(folder), state_dict=whole)
        else:
            super().save_model(str(folder), _internal_call=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.weights.save(output_dir or self.output, state_dict=state_dict)

    def how_to_load(self, where: str | None = None) -> str:
        """The Python that loads what was saved.

        Args:
            where: The folder or Hub id; None for the output folder.
        """
        return self.weights.how_to_load(str(where or self.output), self.base_model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_plan(resume_from_checkpoint, self.plan)
        self.weights.load(resume_from_checkpoint)
        if self.averaging is not None:
            self.averaging.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        plugin = self.accelerator.state.fsdp_plugin  # Trainer would write all weights once more with it
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.is_deepspeed_enabled:  # which has loaded the weights by itself
            check_plan(checkpoint, self.plan)
            if self.averaging is not None:
                self.averaging.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    # -- what is published -----------------------------------------------------------------------------------------

    def create_model_card(self, *_: Any, folder: Path | None = None, **__: Any) -> None:
        """Write `model.json` and README.md, the card, beside the weights. What `Trainer` takes here has no use."""
        from ..hub import write_card

        place = folder or self.output
        self.facts().save(place)
        write_card(place, self._repo_id)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """See before the training that it can be pushed after it.

        Raises:
            HubError: The Hub refuses.
        """
        from ..hub import settle_model

        if self.is_world_process_zero():
            self.hub_model_id = settle_model(self._repo_id, private=self._private, token=token or self.args.hub_token)

    @property
    def _repo_id(self) -> str:
        return self.args.hub_model_id or self.output.absolute().name

    @property
    def _private(self) -> bool:
        return self.args.hub_private_repo is not False

    def push_to_hub(  # type: ignore[override]  # an address, not a commit
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Save the model with its card, and publish both: private, unless `args.hub_private_repo` is False.

        Returns:
            The URL, on the main process.

        Raises:
            HubError: The Hub refused or could not be reached. The folder is whole; the message has the command that
                tries again.
        """
        from ..hub import push_model

        self.save_model()
        if not self.is_world_process_zero():
            return None
        return push_model(
            self.output,
            self._repo_id,
            private=self._private,
            license=self.license,
            commit_message=commit_message,
            token=token or self.args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """By `hub_strategy` "every_save" and its kin the model as it is now is published; checkpoints never are."""
        from ..hub import HubError

        if str(getattr(self.args.hub_strategy, "value", self.args.hub_strategy)) == "end":
            return
        try:
            self.push_to_hub(commit_message=f"Step {self.state.global_step}")
        except HubError as error:  # not worth a training
            logger.warning("%s The training goes on", error)
