"""Fine-tune a video pipeline on the clips that teach it to move, or on all of them.

With no arguments it trains a LoRA on the clips that the repository carries, in a few minutes on two CPU cores, and
shows clips that the pipeline generates before and after:

    accelerate launch examples/train.py

Your own job, on one process or on all that Accelerate knows; options from a YAML file, the command line, or both:

    accelerate launch examples/train.py --config my.yaml --output_dir runs/mine-tuned
    accelerate launch examples/train.py --model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers --dtype bfloat16 \\
        --dataset runs/mine --fraction 0.1 --eval_dataset my/held-out --use_peft --learning_rate 1e-4
    accelerate launch --config_file examples/accelerate/fsdp.yaml examples/train.py --config my.yaml

Stopped and started again it goes on from its last checkpoint. `hf-motive train` is the same without the default.
"""

import sys
from pathlib import Path

from hf_motive.cli import errors_as_sentences, train

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "examples" / "lab" / "train.yaml"


def main() -> None:
    arguments = sys.argv[1:]
    if not {"--config", "--model_name_or_path", "--help", "-h"} & {argument.split("=")[0] for argument in arguments}:
        arguments = ["--config", str(DEFAULT), *arguments]
    with errors_as_sentences():  # the default's paths start at the repository, wherever one is
        train(arguments, description=__doc__ or "", prog="examples/train.py", root=ROOT)


if __name__ == "__main__":
    main()
