"""Do the intervals of preferences hold the truth as often as they say?

    python benchmarks/preference.py [--studies 1000] [--seed 0]

Studies are simulated in which every rater judges every prompt: what a rater sees is μ + a prompt's effect + a rater's
effect + noise, all normal, their variances adding up to one; above τ a is better, below -τ b, between them a tie. The
true shares are then Φ(μ - τ) and Φ(-μ - τ). Counted is how often 95 % intervals of the win rate (ties as half) and
of the share of losses, which is small, hold them, and how wide they are.

Four intervals: "independent": Wilson's, every judgement for itself. "plain bootstrap": percentiles (2.5, 97.5) with
prompts and raters drawn again. "bootstrap": the same, moved out for few clusters. "reported": Wilson's with the design
effect over prompts and raters: what `compare` reports. Writes benchmarks/results/preference.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

LEVEL = 0.95
DRAWS = 1000
# prompts, raters, the prompts' share of the variance, the raters'
STUDIES = (
    (50, 17, 0.0, 0.0),
    (50, 17, 0.2, 0.05),
    (50, 17, 0.4, 0.1),
    (50, 5, 0.3, 0.1),
    (50, 2, 0.3, 0.1),
    (50, 1, 0.3, 0.0),
    (200, 3, 0.3, 0.1),
    (20, 5, 0.3, 0.1),
    (10, 5, 0.3, 0.1),
    (5, 5, 0.3, 0.1),
    (5, 17, 0.3, 0.1),
    (10, 10, 0.8, 0.1),
)
PREFERENCES = ((0.0, 0.16), (0.8, 0.16), (1.8, 0.16))  # μ, τ: even; three in four; almost all
KINDS = ("independent", "plain bootstrap", "bootstrap", "reported")


def study(rng, prompts: int, raters: int, by_prompt: float, by_rater: float, mu: float, tau: float) -> list[dict]:
    """Rows of one study."""
    seen = (
        mu
        + by_prompt**0.5 * rng.standard_normal((prompts, 1))
        + by_rater**0.5 * rng.standard_normal((1, raters))
        + max(0.0, 1 - by_prompt - by_rater) ** 0.5 * rng.standard_normal((prompts, raters))
    )
    said = np.where(seen > tau, "a", np.where(seen < -tau, "b", "tie"))
    return [{"prompt": p, "rater": r, "choice": str(said[p, r])} for p in range(prompts) for r in range(raters)]


def intervals(rows: list[dict], seed: int) -> dict[str, dict[str, tuple[float, float] | None]]:
    """kind -> share -> interval."""
    from hf_motive.preference import compare
    from hf_motive.preference.clusters import bootstrap
    from hf_motive.preference.judgements import table

    found = compare(rows, LEVEL, seed)
    arrays = table(rows)
    values = np.stack([(arrays.choice + 1) / 2, arrays.choice == -1], axis=1).astype(float)
    means = bootstrap(values, arrays.prompt, arrays.rater, DRAWS, seed)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    plain = {"win_rate": (low[0], high[0]), "loss": (low[1], high[1])}
    return {
        "independent": found.independent,
        "plain bootstrap": plain,
        "bootstrap": found.bootstrap,
        "reported": found.intervals,
    }


def coverage(setting: tuple, mu: float, tau: float, studies: int, seed: int) -> dict:
    """kind -> share -> how often the interval held the truth, and its mean width."""
    from scipy.stats import norm

    win, loss = norm.cdf(mu - tau), norm.cdf(-mu - tau)
    truth = {"win_rate": win + (1 - win - loss) / 2, "loss": loss}
    rng = np.random.default_rng(seed)
    held = {kind: {share: [] for share in truth} for kind in KINDS}
    wide = {kind: {share: [] for share in truth} for kind in KINDS}
    for number in range(studies):
        found = intervals(study(rng, *setting, mu, tau), number)
        for kind in KINDS:
            for share, value in truth.items():
                low, high = found[kind][share] or (np.nan, np.nan)
                held[kind][share].append(low <= value <= high)
                wide[kind][share].append(high - low if high > low else 0.0)
    return {
        kind: {share: (float(np.mean(held[kind][share])), float(np.mean(wide[kind][share]))) for share in truth}
        for kind in KINDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    head = ["prompts × raters", "variance by prompt, rater", "true"] + [f"{kind}" for kind in KINDS]
    top = ["| " + " | ".join(head) + " |", "|---|---|---:|" + "---:|" * len(KINDS)]
    tables = {share: list(top) for share in ("win_rate", "loss")}
    from scipy.stats import norm

    for setting in STUDIES:
        for mu, tau in PREFERENCES:
            found = coverage(setting, mu, tau, args.studies, args.seed)
            win, loss = norm.cdf(mu - tau), norm.cdf(-mu - tau)
            for share, true in (("win_rate", win + (1 - win - loss) / 2), ("loss", loss)):
                cells = [f"{100 * held:.0f} % (± {50 * wide:.0f})" for held, wide in (found[k][share] for k in KINDS)]
                facts = [f"{setting[0]} × {setting[1]}", f"{setting[2]:g}, {setting[3]:g}", f"{100 * true:.1f} %"]
                tables[share].append("| " + " | ".join([*facts, *cells]) + " |")
                print(share, tables[share][-1], flush=True)
    out = Path(__file__).parent / "results" / "preference.md"
    error = 100 * (0.95 * 0.05 / args.studies) ** 0.5
    out.write_text(
        "# How often 95 % intervals of a preference hold the truth\n\n"
        f"{args.studies} simulated studies a row, every rater judging every prompt; standard error {error:.1f} points "
        "at 95 %. In brackets half the mean width, in points. What the columns are: `benchmarks/preference.py`, which "
        "also repeats it.\n\n"
        "## Win rate, ties as half\n\n" + "\n".join(tables["win_rate"]) + "\n\n"
        "## Share of losses\n\n" + "\n".join(tables["loss"]) + "\n"
    )


if __name__ == "__main__":
    main()
