"""Score, select, fine-tune, sample, publish: the whole way in one file, to copy and change.

With no arguments it runs on the small pipeline and the clips that the repository carries, in a few minutes on two CPU
cores, and ends with clips that the pipeline generated before and after, side by side in one page:

    accelerate launch examples/curate.py

Your own pipeline and clips, and what comes of it on the Hub (private):

    accelerate launch examples/curate.py --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --corpus my/clips --queries my/queries --output runs/mine --num_frames 81 --height 480 --width 832 \\
        --fraction 0.1 --limit null --times 50 --batch 8 --learning_rate 1e-4 --hub_id me/my-model

It can be stopped and started again: what was encoded, scored or trained is not done twice.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig

from hf_motive import MotiveAttributor
from hf_motive.cli import errors_as_sentences, parse
from hf_motive.corpus import load_clips
from hf_motive.hub import push_dataset
from hf_motive.processes import processes, threads_of_a_process
from hf_motive.scoring import load_pipeline, quiet
from hf_motive.selection import best
from hf_motive.training import MotiveTrainer, MotiveTrainingArguments
from hf_motive.training.account import describe, report
from hf_motive.training.plan import last_checkpoint

LAB = Path(__file__).parent / "lab"


@dataclass
class CurateArguments:
    """All that is decided here."""

    pipeline: str = field(default=str(LAB / "pipeline"), metadata={"help": "Diffusers pipeline: a folder or Hub id."})
    corpus: str = field(default=str(LAB / "corpus"), metadata={"help": "The clips to choose from."})
    queries: str = field(
        default=str(LAB / "queries"),
        metadata={"help": "Clips that move as you want: every other one is asked with, the rest are held out."},
    )
    output: str = field(default="runs/curate", metadata={"help": "Folder for everything."})
    limit: int | None = field(default=100, metadata={"help": "Of the corpus, the first so many clips. null: all."})
    num_frames: int = field(default=17, metadata={"help": "Frames of a clip."})
    height: int = field(default=64, metadata={"help": "Pixels."})
    width: int = field(default=64, metadata={"help": "Pixels."})
    fps: float = field(default=16.0, metadata={"help": "Frames per second."})
    fraction: float = field(default=0.1, metadata={"help": "Share of the clips to train on."})
    times: float = field(default=16, metadata={"help": "How often each of them is seen."})
    batch: int = field(default=4, metadata={"help": "Clips an optimizer step sees on each process."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA. 0: all weights are trained."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Of AdamW."})
    samples: int = field(default=4, metadata={"help": "Clips to generate before and after."})
    sample_steps: int = field(default=20, metadata={"help": "Denoising steps of each."})
    hub_id: str | None = field(
        default=None, metadata={"help": "Publish the model under this id, private, and the selection as HUB_ID-clips."}
    )


def curate(told: CurateArguments) -> MotiveTrainer:
    quiet()
    torch.set_num_threads(threads_of_a_process())
    state, output = processes(), Path(told.output)
    clip = {"num_frames": told.num_frames, "height": told.height, "width": told.width, "fps": told.fps}

    # 1. Load.
    with state.main_process_first():
        corpus, queries = load_clips(told.corpus), load_clips(told.queries)
    corpus = corpus.select(range(min(told.limit or len(corpus), len(corpus))))
    asked, held_out = (queries.select(range(first, len(queries), 2)) for first in (0, 1))
    pipe = load_pipeline(told.pipeline, "auto", state.device)

    # 2. Score. Latents, masks and text embeddings are computed once: the training reads them, too.
    attributor = MotiveAttributor(pipe, **clip, encoded_column="encoded")
    corpus, asked, held_out = (attributor.encode(clips) for clips in (corpus, asked, held_out))
    index = attributor.index(corpus, output / "index")
    scored = attributor.influence(corpus, index, asked, fraction=told.fraction)

    # 3. Select and fine-tune, with samples and the validation loss before and after.
    arguments = MotiveTrainingArguments(
        str(output / "model"),
        **clip,
        fraction=told.fraction,
        num_train_epochs=told.times,
        per_device_train_batch_size=told.batch,
        learning_rate=told.learning_rate,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=0.5,  # of the training
        eval_on_start=True,
        save_steps=0.5,
        sample_count=told.samples,
        sample_inference_steps=told.sample_steps,
    )
    lora = LoraConfig(r=told.lora_rank, lora_alpha=told.lora_rank) if told.lora_rank else None
    trainer = MotiveTrainer(
        pipe,
        arguments,
        scored,
        held_out,
        peft_config=lora,
        base_model=told.pipeline,
        corpus=told.corpus,
        curated_dataset=f"{told.hub_id}-clips" if told.hub_id else None,
    )
    if state.is_main_process:
        print(describe(trainer), flush=True)
    trainer.train(resume_from_checkpoint=last_checkpoint(output / "model"))
    trainer.save_model()

    if state.is_main_process:
        print(report(trainer), flush=True)

    # 4. Publish.
    if told.hub_id:
        trainer.args.hub_model_id = told.hub_id
        url = trainer.push_to_hub()
        if state.is_main_process:
            chosen, why = best(scored, told.fraction), trainer.selection
            print(url)
            print(push_dataset(chosen, f"{told.hub_id}-clips", index=index, whole=scored, selection=why))
    return trainer


if __name__ == "__main__":
    with errors_as_sentences():
        usage = "examples/curate.py [--pipeline P --corpus C --queries Q] [options]"
        description = __doc__ or ""
        (told,) = parse(CurateArguments, sys.argv[1:], prog="examples/curate.py", usage=usage, description=description)
        curate(told)
