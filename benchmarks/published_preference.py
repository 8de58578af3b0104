"""What would a study with the published shares have shown, run again on other prompts?

    python benchmarks/published_preference.py [--studies 2000] [--seed 0]

arXiv 2601.08828 prints win / tie / loss of 850 judgements (50 prompts, 17 raters) and neither an interval nor the
judgements. Assumed here: every prompt has its own three shares, drawn from a Dirichlet distribution about the printed
ones, and the 17 answers to it are drawn from these; answers to one prompt then correlate by r, and raters do not
differ as persons (if they do, everything below is wider). r is not known: it is a column.

Reported: the middle 95 % of the win share over such studies, beside Wilson's interval with the design effect
1 + 16 r; Krippendorff's alpha that such raters show; and in how many of the studies `compare` finds the preference.
Writes benchmarks/results/published_preference.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

PUBLISHED = {
    "the base model": (74.1, 12.3, 13.6),
    "random clips": (58.9, 12.1, 29.0),
    "full fine-tuning": (53.1, 14.8, 32.1),
    "no motion mask": (46.9, 20.0, 33.1),
}
PROMPTS, RATERS = 50, 17
ALIKE = (0.0, 0.1, 0.2, 0.3, 0.5)
CHOICES = ("a", "tie", "b")


def study(rng: np.random.Generator, shares: np.ndarray, alike: float) -> np.ndarray:
    """(prompts, 3) counts of a, tie, b."""
    by_prompt = rng.dirichlet(shares * (1 / alike - 1), size=PROMPTS) if alike else np.tile(shares, (PROMPTS, 1))
    return rng.multinomial(RATERS, by_prompt)


def judgements(counts: np.ndarray, rng: np.random.Generator) -> list[dict]:
    """The counts as rows; who of the raters said what is drawn by lot."""
    rows = []
    for prompt, said in enumerate(counts):
        answers = rng.permutation(np.repeat(CHOICES, said))
        rows += [{"prompt": prompt, "rater": rater, "choice": str(answer)} for rater, answer in enumerate(answers)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from hf_motive.preference import Preference, agreement, compare

    rng = np.random.default_rng(args.seed)
    lines = [
        "| against | answers correlate by | alpha | middle 95 % of the win share | Wilson, design effect 1 + 16 r | "
        "preference found in |",
        "|---|---:|---:|---|---|---:|",
    ]
    for name, printed in PUBLISHED.items():
        preference = Preference.from_shares(*printed, n=PROMPTS * RATERS)
        shares = np.array(preference.shares)
        for alike in ALIKE:
            studies = [study(rng, shares, alike) for _ in range(args.studies)]
            low, high = np.quantile([counts[:, 0].sum() / counts.sum() for counts in studies], (0.025, 0.975))
            some = [judgements(counts, rng) for counts in studies[: args.studies // 10]]
            alpha = np.mean([agreement(rows).nominal for rows in some[:20]])
            found = np.mean([compare(rows).is_apart for rows in some])
            ends = preference.interval("win", design_effect=1 + (RATERS - 1) * alike)
            lines.append(
                f"| {name} | {alike:g} | {alpha:.2f} | {100 * low:.1f} to {100 * high:.1f} % | "
                f"{100 * ends.low:.1f} to {100 * ends.high:.1f} % | {100 * found:.0f} % |"
            )
            print(lines[-1], flush=True)
    out = Path(__file__).parent / "results" / "published_preference.md"
    out.write_text(
        "# The published preferences, if they were asked of other prompts\n\n"
        f"{PROMPTS} prompts × {RATERS} raters; {args.studies} studies a row for the middle 95 %, {args.studies // 10} "
        f"for the last column. Assumptions: `benchmarks/published_preference.py`, which also repeats it "
        f"(seed {args.seed}).\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
