"""Did the motion get better? Generate for a list of prompts with several models, measure, and compare.

With no arguments it compares the pipeline that the repository carries with itself under stronger guidance, within two
minutes on two CPU cores:

    accelerate launch examples/evaluate.py

Your own models, on one process or on all that Accelerate knows; options from a YAML file, the command line, or both:

    accelerate launch examples/evaluate.py --config my.yaml --output runs/compared
    accelerate launch examples/evaluate.py --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --candidates base best=runs/tuned random=runs/random --prompts my/prompts.txt --seeds 2 --page true

Stopped and started again it goes on where it was. `hf-motive evaluate` is the same without the default.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "examples" / "lab" / "evaluate.yaml"


def main() -> None:
    # Python looks for modules in a script's own folder first, where `import evaluate` would find this file and not
    # Hugging Face's library.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    from hf_motive.cli import errors_as_sentences, evaluate

    arguments = sys.argv[1:]
    told = {argument.split("=")[0] for argument in arguments}
    if not {"--config", "--pipeline", "--candidates", "--prompts", "--help", "-h"} & told:
        arguments = ["--config", str(DEFAULT), *arguments]
    with errors_as_sentences():  # the default's paths start at the repository, wherever one is
        evaluate(arguments, description=__doc__ or "", prog="examples/evaluate.py", root=ROOT)


if __name__ == "__main__":
    main()
