"""Which clips teach this pipeline to move like the queries? Rank a corpus.

With no arguments it scores the clips that the repository carries, in a few minutes on two CPU cores:

    accelerate launch examples/score.py

Your own job, on one process or on all that Accelerate knows; options from a YAML file, the command line, or both:

    accelerate launch examples/score.py --config my.yaml --output runs/mine
    accelerate launch examples/score.py --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --corpus my/clips --queries my/queries

Stopped and started again it goes on where it was. `hf-motive score` is the same without the default.
"""

import sys
from pathlib import Path

from hf_motive.cli import errors_as_sentences, score

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "examples" / "lab" / "score.yaml"


def main() -> None:
    arguments = sys.argv[1:]
    if not {"--config", "--pipeline", "--help", "-h"} & {argument.split("=")[0] for argument in arguments}:
        arguments = ["--config", str(DEFAULT), *arguments]
    with errors_as_sentences():  # the default's paths start at the repository, wherever one is
        score(arguments, description=__doc__ or "", prog="examples/score.py", root=ROOT)


if __name__ == "__main__":
    main()
