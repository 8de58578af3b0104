"""`hf-motive score | select | explain | train | evaluate | push | inspect`: the library without Python.

Here stands how a command line becomes arguments and an error becomes a sentence. What the commands do is in
`scoring.py`, `finetuning.py`, `evaluation/` and `commands/`, each imported when its command is called.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

HELP = """\
hf-motive: which of my clips teach a video diffusion model to move well, and which badly?

  hf-motive score      rank the clips of a corpus by their influence on motion
  hf-motive select     take the best (or leave out the worst) as a folder that trainers read
  hf-motive explain    say which second of a clip, and which object, its score comes from
  hf-motive train      fine-tune the pipeline on them, or on all clips
  hf-motive evaluate   generate with several models, measure, and compare them with intervals
  hf-motive push       publish a scored corpus, a selection, an index or a trained model on the Hub, with its card
  hf-motive inspect    say what an index, a scored dataset or a model is, and whether two are comparable

The common path of work:

  hf-motive score --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
      --corpus my/clips --queries my/queries --output runs/mine
  hf-motive inspect runs/mine                          # how the scores are spread, what was left out and why
  hf-motive select runs/mine --output best             # the best tenth: metadata.jsonl and mp4 files
  hf-motive train --model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers --dataset runs/mine --fraction 0.1 \\
      --output_dir runs/tuned                          # the pipeline, fine-tuned on it
  hf-motive evaluate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --candidates base tuned=runs/tuned \\
      --prompts my/prompts.txt --output runs/compared  # did the motion get better?
  hf-motive push best me/my-clips-best                 # private, with a dataset card

`hf-motive COMMAND --help` explains every option. Options may stand in a YAML file too: --config my.yaml.
On all GPUs of a machine or of many: accelerate launch -m hf_motive.cli score ...
"""

SCORE = """\
Which clips teach this pipeline to move like the queries? Rank a corpus.

    hf-motive score --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --corpus my/clips --queries my/queries --output runs/mine
    hf-motive score --config my.yaml --output runs/mine
    accelerate launch -m hf_motive.cli score --config my.yaml      # on all that Accelerate knows

--config FILE gives options by YAML; those of the command line go before them. The results are influence.parquet and
index/ in the output folder, and a table. Stopped and started again it goes on where it was.
"""

TRAIN = """\
Fine-tune the pipeline on the clips that teach it to move, or on all of them.

    hf-motive train --model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers --dataset runs/mine --fraction 0.1 \\
        --eval_dataset my/held-out --use_peft --learning_rate 1e-4 --max_steps 500 --output_dir runs/lora
    hf-motive train --config my.yaml --output_dir runs/mine-tuned
    accelerate launch -m hf_motive.cli train --config my.yaml       # on all that Accelerate knows

--dataset is the output folder of `hf-motive score` or `select`, or any clips. Without --use_peft all weights of the
denoiser are trained. Clips' latents and text embeddings are computed once and kept on disk. --config FILE gives
options by YAML; those of the command line go before them. Stopped and started again it goes on from its last
checkpoint. Options not explained here are those of transformers' TrainingArguments and TRL's ModelConfig.
"""

EVALUATE = """\
Did the motion get better? Generate for a list of prompts with several models, measure, compare.

    hf-motive evaluate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --candidates base tuned=runs/tuned \\
        --prompts my/prompts.txt --output runs/compared
    hf-motive evaluate --config my.yaml
    accelerate launch -m hf_motive.cli evaluate --config my.yaml    # on all that Accelerate knows

Every candidate starts from the same noise for a prompt, so that clips are compared in pairs. The results are
results.md, results.json (means, differences from the first candidate, won pairs, with intervals over prompts),
scores.parquet (a row a clip) and videos/ in the output folder, with --page also a page on which people choose. The
metrics that are taken by default need no weights. --config FILE gives options by YAML; those of the command line go
before them. Stopped and started again it goes on where it was; with more prompts, seeds, metrics or candidates it does
what is missing.
"""

SELECT = """\
Take clips by their scores, and write them where a trainer, or a person, looks at them.

    hf-motive select runs/mine --output best                              # the best tenth, best first
    hf-motive select runs/mine --count 500 --output best.parquet          # the best five hundred, as a table
    hf-motive select runs/mine --drop_worst 0.1 --output clean            # all that have a score but the worst tenth
    hf-motive select runs/mine --worst --count 20 --output worst          # to look at
    hf-motive select runs/mine --group_column caption --count 50 --output best
    hf-motive select runs/mine --by motion_mean --output fastest          # "why not just flow?"

SOURCE is the output folder of `hf-motive score`, a scored .parquet, a saved dataset, a folder that select wrote, or
the id of a scored dataset on the Hub. Rows without a score are never taken. --config FILE gives options by YAML.
"""

EXPLAIN = """\
Which second of a clip, and which moving object, does its score come from?

    hf-motive explain runs/mine                                # the five best clips of a run
    hf-motive explain runs/mine --clips a.mp4 b.mp4            # these
    hf-motive explain runs/mine --count 20 --worst             # what is wrong with the worst?
    hf-motive explain runs/mine --regions motion               # and which of the objects that move
    hf-motive explain runs/mine --whole --seconds 1            # long clips from their beginning to their end

SOURCE is the output folder of `hf-motive score`; its pipeline, queries and settings are taken. Each clip gets a
picture: influence over time above its frames. explained.csv and explained.json hold the shares, which add up to the
clip's influence (with --whole, to that of each window). A clip costs one to three features, more with shorter
segments. --config FILE gives options by YAML.
"""

PUSH = """\
Publish on the Hub, with a card that says what it is. Private, unless --public.

    hf-motive push runs/mine me/my-clips-scored               # every clip with its scores
    hf-motive push runs/mine me/my-clips-scored --index       # and the index, as me/my-clips-scored-index
    hf-motive push best me/my-clips-best --license cc-by-4.0  # what `hf-motive select` wrote
    hf-motive push runs/mine/index me/my-clips-index          # the index alone: others ask it their own queries
    hf-motive push runs/tuned me/my-model                     # where a training ended: weights, samples, card

SOURCE is looked at to know which of these it is. --config FILE gives options by YAML.
Who you are is known from `hf auth login` or the environment variable HF_TOKEN, never from the command line, which a
shell writes down.
"""

INSPECT = """\
What is this index or scored dataset? Are two comparable?

    hf-motive inspect runs/mine                   # a run: its scores and its index
    hf-motive inspect runs/mine/index             # an index: settings, rows by status, digest, shards
    hf-motive inspect best.parquet                # a scored dataset: file, folder, saved, or on the Hub
    hf-motive inspect runs/mine runs/other        # and whether they may be compared, and how far they agree
    hf-motive inspect runs/tuned                  # where a training ended: the model, and how it came to be
    hf-motive inspect runs/mine --json

Exit status: 0; with two, 3 unless they are comparable: features of the same settings and, for two scored datasets,
the same queries. 1 is an error. --config FILE gives options by YAML.
"""


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the options, and the text above as it stands."""

    def _get_help_string(self, action: Any) -> str | None:
        return action.help if action.required else super()._get_help_string(action)

    def _format_action_invocation(self, action: Any) -> str:
        """`--drop_worst FRACTION`, without the same again as `--drop-worst FRACTION`."""
        if not action.option_strings or action.option_strings[0] == "-h":
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {value}".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Ends by `SystemExit` where the exit status is not 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"score": score, "select": select, "train": train, "push": push, "inspect": inspect}
    commands |= {"explain": explain}
    commands |= {"evaluate": evaluate}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from . import __version__

        print(f"hf-motive {__version__}")
        return
    with errors_as_sentences():
        if arguments[0] not in commands:
            raise ValueError(
                f"no command {arguments[0]!r}; the commands are {', '.join(commands)}: hf-motive --help explains them"
            )
        commands[arguments[0]](arguments[1:])


def score(
    arguments: Sequence[str], *, description: str = SCORE, prog: str = "hf-motive score", root: Path | None = None
):
    """Parse and score, for `hf-motive score` and `examples/score.py`.

    Args:
        arguments: The command line behind the command.
        description: What `--help` says first.
        prog: What the command is called there.
        root: Where the paths of a configuration start that lead nowhere from here.
    """
    from .config import AttributionConfig
    from .scoring import ScoreArguments
    from .scoring import score as run

    hint = "to see it work first, `accelerate launch examples/score.py` in a clone scores the clips that it carries"
    usage = f"{prog} --pipeline P --corpus C --queries Q [--output FOLDER] [--config FILE] [options]"
    job, config = parse(
        (ScoreArguments, AttributionConfig), arguments, prog=prog, usage=usage, description=description, hint=hint
    )
    for name in ("pipeline", "corpus", "queries") if root is not None else ():
        path = getattr(job, name)
        if not Path(path).exists() and (root / path).exists():
            setattr(job, name, str(root / path))
    return run(job, config)


def train(
    arguments: Sequence[str], *, description: str = TRAIN, prog: str = "hf-motive train", root: Path | None = None
):
    """Parse and fine-tune, for `hf-motive train` and `examples/train.py`; arguments as of `score`."""
    from .finetuning import PipelineConfig, TrainArguments
    from .finetuning import train as run
    from .training import MotiveTrainingArguments

    hint = "to see it work first, `accelerate launch examples/train.py` in a clone trains on the clips that it carries"
    usage = f"{prog} --model_name_or_path P --dataset D [--output_dir FOLDER] [--config FILE] [options]"
    kinds = (TrainArguments, MotiveTrainingArguments, PipelineConfig)
    job, training, model = parse(kinds, arguments, prog=prog, usage=usage, description=description, hint=hint)
    for told, name in ((job, "dataset"), (job, "eval_dataset"), (model, "model_name_or_path")):
        path = getattr(told, name)
        if root is not None and path and not Path(path).exists() and (root / path).exists():
            setattr(told, name, str(root / path))
    return run(job, training, model)


def evaluate(
    arguments: Sequence[str],
    *,
    description: str = EVALUATE,
    prog: str = "hf-motive evaluate",
    root: Path | None = None,
):
    """Parse, generate and compare, for `hf-motive evaluate` and `examples/evaluate.py`; arguments as of `score`."""
    from .evaluation import EvaluateArguments
    from .evaluation import evaluate as run

    usage = f"{prog} --candidates NAME=PLACE ... --prompts P [--output FOLDER] [--config FILE] [options]"
    (job,) = parse(EvaluateArguments, arguments, prog=prog, usage=usage, description=description)
    return run(job if root is None else job.below(root))


def select(arguments: Sequence[str]) -> None:
    from .commands.select import SelectArguments
    from .commands.select import select as run

    usage = "hf-motive select SOURCE --output FOLDER [options]"
    run(*parse(SelectArguments, arguments, ("source",), prog="hf-motive select", usage=usage, description=SELECT))


def explain(arguments: Sequence[str]) -> None:
    from .commands.explain import ExplainArguments
    from .commands.explain import explain as run

    usage = "hf-motive explain SOURCE [options]"
    run(*parse(ExplainArguments, arguments, ("source",), prog="hf-motive explain", usage=usage, description=EXPLAIN))


def push(arguments: Sequence[str]) -> None:
    from .commands.push import PushArguments
    from .commands.push import push as run

    usage = "hf-motive push SOURCE REPO_ID [options]"
    places = ("source", "repo_id")
    run(*parse(PushArguments, arguments, places, prog="hf-motive push", usage=usage, description=PUSH))


def inspect(arguments: Sequence[str]) -> None:
    from .commands.inspect import InspectArguments
    from .commands.inspect import inspect as run

    usage = "hf-motive inspect SOURCE [OTHER] [options]"
    places = ("source", "other")
    told = parse(InspectArguments, arguments, places, prog="hf-motive inspect", usage=usage, description=INSPECT)
    if status := run(*told):
        raise SystemExit(status)


def parse(
    dataclasses: Any,
    arguments: Sequence[str],
    places: Sequence[str] = (),
    *,
    prog: str,
    usage: str,
    description: str,
    hint: str = "",
) -> tuple[Any, ...]:
    """A command line, and the YAML file that it names, to dataclasses.

    Args:
        dataclasses: One or several, as `TrlParser` takes them.
        arguments: What the user wrote.
        places: Names of the fields that may be given by place.
        prog, usage, description: As `ArgumentParser` takes them.
        hint: What to add where a required option is missing.

    Raises:
        ValueError: It does not fit; the message says where to read on.
    """
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            if (missing := message.removeprefix("the following arguments are required: ")) != message:
                names = [name.split("/")[0] for name in missing.split(", ")]
                names = [name[2:].upper() if name[2:] in places else name for name in names]
                message = f"{prog} needs {', '.join(names)}, here or in the YAML of --config" + f"; {hint}" * bool(
                    hint
                )
            raise ValueError(f"{message}. {prog} --help explains every option")

    parser = Parser(
        dataclasses,
        prog=prog,
        usage=usage,
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    known = [name for action in parser._actions for name in action.option_strings] + ["--config"]
    arguments = [part for text in arguments for part in _split(text, "--config")]
    if places:
        flags = {f"--{field.name}" for field in fields(dataclasses) if isinstance(field.default, bool)}
        arguments = _by_name(arguments, places, flags, usage)
    if arguments.count("--config") > 1:
        parser.error("one YAML file at a time: --config stands here more than once")
    if arguments[-1:] == ["--config"]:
        parser.error("--config needs the name of a YAML file")
    *told, left = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    if left:
        option = str(left[0]).split("=")[0]
        near = [name.replace("-", "_").replace("__", "--", 1) for name in get_close_matches(option, known, 1)]
        parser.error(f"there is no option {option}" + (f" (did you mean {near[0]}?)" if near else ""))
    return tuple(told)


def _split(text: str, option: str) -> list[str]:
    """`--config=FILE` as two words: TrlParser knows them so."""
    return text.split("=", 1) if text.startswith(f"{option}=") else [text]


def _by_name(arguments: Sequence[str], places: Sequence[str], flags: set[str], usage: str) -> list[str]:
    """Words that stand by place, wherever among the options, as options: argparse and YAML then know one spelling.

    A flag takes a word only if that says yes or no: `--json runs/mine` is a flag and a place.
    """
    words, named, free = list(arguments), [], list(places)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if not free:
                raise ValueError(f"what is {word!r} for? {usage}")
            named += [f"--{free.pop(0)}", word]
            continue
        named.append(word)
        if word.replace("-", "_").replace("__", "--", 1) in flags:
            said = words and words[0].lower() in ("yes", "no", "true", "false", "t", "f", "y", "n", "1", "0")
            named.append(words.pop(0) if said else "true")
        elif words and "=" not in word and word not in ("-h", "--help"):
            named.append(words.pop(0))
    return named


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """What the user can mend becomes `error: ...` and exit status 1. Anything else keeps its traceback."""
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError
        from yaml import YAMLError

        from .pipelines import PipelineError
        from .storage import IndexLockedError

        if isinstance(error, (PipelineError, IndexLockedError, DatasetsError, HTTPError, YAMLError)):
            raise SystemExit(f"error: {error}") from None
        raise


if __name__ == "__main__":
    main()
