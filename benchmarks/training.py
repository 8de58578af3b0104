"""What MotiveTrainer costs over a loop without it: python benchmarks/training.py

Three loops over the same clips, noise levels and noise, on the lab's pipeline, with AdamW and clipped gradients, all
reading latents and text embeddings that were computed before:

    by hand      the transformer called as a training script of this model calls it, no hf_motive at all
    step         PipelineStep.loss in a bare loop
    trainer      MotiveTrainer.train, with its logging, dataloader and checks

They take turns, a few steps each, so that what else the machine does falls on all alike. Figures are the medians of
the turns' ratios to `by hand`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_motive.corpus import load_clips
from hf_motive.scoring import load_pipeline, quiet
from hf_motive.training import MotiveTrainer, MotiveTrainingArguments

LAB = Path(__file__).parents[1] / "examples" / "lab"
RESULT = Path(__file__).parent / "results" / "training.md"


def make(device: str, batch: int, lora: bool, folder: str) -> MotiveTrainer:
    from peft import LoraConfig

    arguments = MotiveTrainingArguments(
        folder,
        num_frames=17,
        height=64,
        width=64,
        fps=16.0,
        per_device_train_batch_size=batch,
        max_steps=10**6,
        caption_dropout=0.0,
        sample_count=0,
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
        encodings=str(Path(folder).parent / "encodings"),
    )
    pipe = load_pipeline(str(LAB / "pipeline"), "float32", device)
    clips = load_clips(LAB / "corpus").select(range(16))
    return MotiveTrainer(pipe, arguments, clips, peft_config=LoraConfig(r=16) if lora else None)


class Loop:
    """A bare loop over the trainer's own draws. `losses` makes a batch's losses."""

    def __init__(self, trainer: MotiveTrainer, by_hand: bool):
        self.trainer = trainer
        self.parameters = [p for p in trainer.weights.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.0, fused=True)
        rows = len(trainer.train_dataset)
        self.draws = ((draw, draw % rows) for draw in itertools.count())
        self.loss = self._by_hand if by_hand else trainer.clip_loss
        with torch.no_grad():
            text = {
                caption: trainer.pipe.encode_prompt(
                    caption, do_classifier_free_guidance=False, max_sequence_length=512
                )[0]
                for caption in trainer.train_dataset.dataset["caption"]
            }
        self.text = text

    def _by_hand(self, clip):
        trainer = self.trainer
        config, draw = trainer.pipe.vae.config, trainer.draws(clip.draw)
        place = trainer.step.scheduled(draw.position)
        mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        latents = (clip.latents - mean) / std
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(draw.seed))
        noised = place.signal * latents + place.sigma * noise
        device = trainer.args.device
        velocity = trainer.pipe.transformer(
            hidden_states=noised[None].to(device),
            timestep=torch.tensor([place.timestep], device=device),
            encoder_hidden_states=self.text[clip.caption],
            return_dict=False,
        )[0]
        return torch.nn.functional.mse_loss(velocity, (noise - latents)[None].to(device))

    def run(self, steps: int) -> float:
        """Seconds a step."""
        batch = self.trainer.args.train_batch_size
        started = time.perf_counter()
        for _ in range(steps):
            clips = [self.trainer.train_dataset[next(self.draws)] for _ in range(batch)]
            torch.stack([self.loss(clip) for clip in clips]).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        _wait(self.trainer)
        return (time.perf_counter() - started) / steps


class Turns(TrainerCallback):
    """Between the trainer's steps, the other loops have their turns."""

    def __init__(self, trainer: MotiveTrainer, others: dict[str, Loop], turns: int, steps: int):
        self.trainer, self.others, self.turns, self.steps = trainer, others, turns, steps
        self.found: list[dict[str, float]] = []
        self.started = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps:
            return
        _wait(self.trainer)
        now = time.perf_counter()
        if state.global_step > self.steps:  # the first turn warms up
            self.found.append({"trainer": (now - self.started) / self.steps})
            for name, loop in self.others.items():
                self.found[-1][name] = loop.run(self.steps)
        else:
            for loop in self.others.values():
                loop.run(2)
        control.should_training_stop = len(self.found) == self.turns
        self.started = time.perf_counter()


def _wait(trainer: MotiveTrainer) -> None:
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize()


def measure(device: str, batch: int, lora: bool, turns: int, steps: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(device, batch, lora, f"{folder}/run")
        others = {"by hand": Loop(trainer, True), "step": Loop(trainer, False)}
        clock = Turns(trainer, others, turns, steps)
        trainer.add_callback(clock)
        trainer.train()
    ratios = {name: sorted(turn[name] / turn["by hand"] for turn in clock.found) for name in ("step", "trainer")}
    hand = statistics.median(turn["by hand"] for turn in clock.found)
    cells = [f"{statistics.median(r):.3f} ({r[0]:.3f}–{r[-1]:.3f})" for r in ratios.values()]
    return f"| {'LoRA' if lora else 'all weights'} | {batch} | {hand * 1000:.0f} ms | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=8, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    told = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    lines = [
        "| trained | clips a step | a step by hand | `PipelineStep.loss` | `MotiveTrainer` |",
        "|---|---|---|---|---|",
    ]
    lines += [measure(told.device, batch, lora, told.turns, told.steps) for batch in (1, 4) for lora in (False, True)]
    table = "\n".join(lines)
    print(table)
    if told.write:
        RESULT.write_text(
            "# What the trainer costs\n\nTimes a step by hand, median and range over "
            f"{told.turns} turns of {told.steps} steps; the lab's pipeline, {told.device}, one thread, torch "
            f"{torch.__version__}. Made by `python benchmarks/training.py --write`.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
