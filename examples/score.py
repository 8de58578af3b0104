"""Which clips teach this pipeline to move like the queries? Rank a corpus.

With no arguments it scores the clips that the repository carries, in a few minutes on two CPU cores:

    accelerate launch examples/score.py

Your own job, on one process or on all that Accelerate knows; options from a YAML file, the command line, or both:

    accelerate launch examples/score.py --config my.yaml --output runs/mine
    accelerate launch examples/score.py --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --corpus my/clips --queries my/queries

Stopped and started again it goes on where it was.
"""

import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from pathlib import Path

from trl import TrlParser

from hf_motive.config import AttributionConfig
from hf_motive.pipelines import PipelineError
from hf_motive.scoring import ScoreArguments, score

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "examples" / "lab" / "score.yaml"


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the options, and the text above as it stands."""


def main() -> None:
    arguments = sys.argv[1:]
    if not {"--config", "--pipeline", "--help", "-h"} & set(arguments):
        arguments = ["--config", str(DEFAULT), *arguments]
    parser = TrlParser((ScoreArguments, AttributionConfig), description=__doc__, formatter_class=HelpFormatter)
    try:
        job, config = parser.parse_args_and_config(arguments)
        for name in ("pipeline", "corpus", "queries"):  # the default's paths start at the repository, wherever one is
            path = getattr(job, name)
            if not Path(path).exists() and (ROOT / path).exists():
                setattr(job, name, str(ROOT / path))
        score(job, config)
    except (ValueError, OSError, PipelineError) as error:  # what the user can mend; anything else keeps its traceback
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
