"""`python -m hf_motive.preference page | report | sample`: judging pairs of videos from a shell."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from ..cli import errors_as_sentences
from .page import INSTRUCTIONS, TITLE

HELP = """\
Which of two sets of videos is preferred, and how sure is that?

    python -m hf_motive.preference page runs/tuned/clips runs/base/clips --output judge.html
        one HTML file; raters open it, judge, and send back a file of their choices
    python -m hf_motive.preference report choices/*.jsonl --names tuned base
        wins, ties and losses with intervals, and how far the raters agree
    python -m hf_motive.preference report --shares 74.1 12.3 13.6 --of 850 --prompts 50
        the intervals that a table without intervals leaves out
    python -m hf_motive.preference sample --share 0.6 --half-width 0.05 --raters 5
        how many prompts a study needs

`python -m hf_motive.preference COMMAND --help` explains every option.
"""

PAGE = """\
Write one HTML file on which people judge pairs of videos.

    python -m hf_motive.preference page A B --output judge.html

A and B are folders whose videos have the same names, one for each prompt. The prompt is the `caption` (or `prompt`)
of a metadata.jsonl in either folder; without one, the text file beside the video, or else its name. The page needs no
server and no network: open it in a browser or send it. Which folder a video comes from stands nowhere on it, pairs
come in random order with random sides, another for every rater, and the choices are downloaded as a file.
"""

REPORT = """\
Say what was preferred, and how sure that is.

    python -m hf_motive.preference report choices/*.jsonl --names tuned base
    python -m hf_motive.preference report choices --names tuned base --markdown > preference.md
    python -m hf_motive.preference report --shares 74.1 12.3 13.6 --of 850 --prompts 50

Files are what raters downloaded from a page, or any JSON lines of {"prompt", "choice": "a" | "b" | "tie"} with a
"rater" and a "pair" where there are several; a folder stands for its .jsonl files. The intervals take prompts and
raters as drawn from many. Of printed shares only the counts are known: shown is what is left of them if the answers
within a prompt are alike to this or that degree.
"""

SAMPLE = """\
How many judgements, and prompts, make the interval as narrow as wanted?

    python -m hf_motive.preference sample --share 0.6 --half-width 0.05 --raters 5
    python -m hf_motive.preference sample --half-width 0.03 --raters 3 --alike 0.2

Raters of one prompt answer alike: m raters whose answers correlate by r tell as much as m / (1 + (m - 1) r)
independent ones, so that more prompts tell more than more raters.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = ArgumentParser("python -m hf_motive.preference", description=HELP, formatter_class=_Formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="page | report | sample")
    _page(commands)
    _report(commands)
    _sample(commands)
    args = parser.parse_args(arguments)
    with errors_as_sentences():
        {"page": page, "report": report, "sample": sample}[args.command](args)


class _Formatter(RawDescriptionHelpFormatter):
    """The text above as it stands."""


def _page(commands) -> None:
    parser = commands.add_parser("page", description=PAGE, formatter_class=_Formatter, help="a page for raters")
    parser.add_argument("a", type=Path, metavar="A", help="Folder of videos: `a` in the choices.")
    parser.add_argument("b", type=Path, metavar="B", help="Folder of videos of the same names: `b`.")
    parser.add_argument("--output", type=Path, default=Path("judge.html"), help="The file. Default: judge.html")
    parser.add_argument("--title", default=TITLE, help=f"The question. Default: {TITLE}")
    parser.add_argument("--instructions", default=INSTRUCTIONS, help="What to look at, said before the first pair.")
    parser.add_argument("--seed", type=int, default=0, help="Of order and sides. Default: 0")


def _report(commands) -> None:
    parser = commands.add_parser("report", description=REPORT, formatter_class=_Formatter, help="what was preferred")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON lines, or folders of them.")
    parser.add_argument("--names", nargs=2, default=("a", "b"), metavar=("A", "B"), help="What a and b are called.")
    parser.add_argument("--level", type=float, default=0.95, help="Of the intervals. Default: 0.95")
    parser.add_argument("--seed", type=int, default=0, help="Of the bootstrap. Default: 0")
    parser.add_argument(
        "--shares", nargs=3, type=float, metavar=("WIN", "TIE", "LOSS"), help="Printed percentages, in place of files."
    )
    parser.add_argument("--of", type=int, metavar="N", help="How many judgements the shares are of.")
    parser.add_argument("--prompts", type=int, metavar="N", help="How many prompts these were of.")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="A table for a document.")
    shown.add_argument("--json", action="store_true", help="Everything, for a program.")


def _sample(commands) -> None:
    parser = commands.add_parser("sample", description=SAMPLE, formatter_class=_Formatter, help="how many to ask")
    parser.add_argument("--share", type=float, default=0.5, help="What one expects to see. Default: 0.5, the worst")
    parser.add_argument("--half-width", type=float, default=0.05, help="How far to each side. Default: 0.05")
    parser.add_argument("--level", type=float, default=0.95, help="Of the interval. Default: 0.95")
    parser.add_argument("--raters", type=int, default=1, help="Who judge every prompt. Default: 1")
    parser.add_argument(
        "--alike", type=float, default=0.2, help="Correlation of two raters' answers to one prompt. Default: 0.2"
    )


def page(args: Namespace) -> None:
    """Pairs of two folders to a page."""
    from .folders import pair_up
    from .page import write_page

    pairs = pair_up(args.a, args.b)
    path = write_page(args.output, pairs, title=args.title, instructions=args.instructions, seed=args.seed)
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(pairs)} pairs, {size:.1f} MB. Open it in a browser, or send it; then:")
    print(f"python -m hf_motive.preference report CHOICES.jsonl --names {args.a.name} {args.b.name}")


def report(args: Namespace) -> None:
    """Choices, or printed shares, to a table."""
    from .agreement import agreement
    from .choices import left_share, read_judgements
    from .comparison import compare
    from .printed import printed

    if args.shares is not None:
        if args.files or args.of is None:
            raise ValueError("--shares WIN TIE LOSS needs --of N, the number of judgements, and takes no files")
        print(printed(*args.shares, of=args.of, prompts=args.prompts, level=args.level, names=args.names))
        return
    if not args.files:
        raise ValueError("report needs the files that raters downloaded, or --shares WIN TIE LOSS --of N")
    judgements = read_judgements(args.files)
    found, agreed = compare(judgements, args.level, args.seed), agreement(judgements, args.level, args.seed)
    left, decided = left_share(judgements)
    if args.json:
        facts = {**found.to_dict(), "agreement": agreed.to_dict(), "left_preferred": left, "left_of": decided}
        print(json.dumps(facts, indent=2))
        return
    lines = [found.markdown(*args.names).rstrip() if args.markdown else found.text(*args.names), str(agreed)]
    if decided:
        lines.append(f"the video on the left was preferred in {left} of {decided} ({100 * left / decided:.0f} %)")
    print(("\n\n" if args.markdown else "\n").join(lines))


def sample(args: Namespace) -> None:
    """How many judgements and prompts."""
    from .intervals import minimum_sample

    if args.raters < 1 or not 0 <= args.alike <= 1:
        raise ValueError("--raters is at least 1, and --alike a correlation between 0 and 1")
    effect = 1 + (args.raters - 1) * args.alike
    count = minimum_sample(args.share, args.half_width, args.level, effect)
    prompts = -(-count // args.raters)
    about = f"{100 * args.share:g} % ± {100 * args.half_width:g} % at {100 * args.level:g} %"
    if args.raters == 1:
        print(f"{about}: {prompts} prompts, judged once each")
        return
    print(
        f"{about}: {prompts} prompts × {args.raters} raters = {prompts * args.raters} judgements "
        f"(design effect {effect:.2f} if answers to one prompt correlate by {args.alike:g}); "
        f"with one rater {minimum_sample(args.share, args.half_width, args.level)} prompts"
    )


if __name__ == "__main__":
    main()
