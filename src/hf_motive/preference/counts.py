"""Wins, ties and losses, and what they say if every judgement is independent of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .intervals import Interval, checked_level, wilson

Share = Literal["win", "tie", "loss", "win_rate", "net"]
SHARES: tuple[Share, ...] = ("win", "tie", "loss", "win_rate", "net")


@dataclass(frozen=True)
class Preference:
    """How often a was preferred to b (win), b to a (loss), or neither (tie). Counts, in whole judgements."""

    win: int
    tie: int
    loss: int

    def __post_init__(self):
        for name in ("win", "tie", "loss"):
            count = getattr(self, name)
            if int(count) != count or count < 0:
                raise ValueError(
                    f"{name} is a count of judgements, got {count}; "
                    "percentages go in by Preference.from_shares(74.1, 12.3, 13.6, n=850)"
                )
            object.__setattr__(self, name, int(count))
        if not self.n:
            raise ValueError("win, tie and loss are all 0: there is nothing to compare without a judgement")

    @classmethod
    def from_shares(cls, win: float, tie: float, loss: float, *, n: int) -> Preference:
        """The counts nearest to printed percentages (or shares that add up to 1); `shares` says how near.

        Raises:
            ValueError: They do not add up to 100 (within what rounding does) or to 1, or n is no count.
        """
        total = win + tie + loss
        if min(win, tie, loss) < 0 or not (abs(total - 100) <= 1 or abs(total - 1) <= 0.01):
            raise ValueError(f"win, tie and loss are percentages that add up to 100, got {win} + {tie} + {loss}")
        if n < 1 or int(n) != n:
            raise ValueError(f"n is the number of judgements that the percentages are of, got {n}")
        exact = [share / total * n for share in (win, tie, loss)]
        counts = [int(count) for count in exact]
        # Largest remainders, so that the counts add up to n.
        for i in sorted(range(3), key=lambda i: counts[i] - exact[i])[: int(n) - sum(counts)]:
            counts[i] += 1
        return cls(*counts)

    @property
    def n(self) -> int:
        """All judgements."""
        return self.win + self.tie + self.loss

    @property
    def shares(self) -> tuple[float, float, float]:
        """Win, tie and loss, in [0, 1]."""
        return self.win / self.n, self.tie / self.n, self.loss / self.n

    @property
    def win_rate(self) -> float:
        """Wins and half of the ties, in [0, 1]: 0.5 where neither side is preferred."""
        return (self.win + self.tie / 2) / self.n

    @property
    def net(self) -> float:
        """Wins less losses, in [-1, 1]: 0 where neither side is preferred."""
        return (self.win - self.loss) / self.n

    def value(self, share: Share) -> float:
        """A share by its name."""
        if share not in SHARES:
            raise ValueError(f"there is no share {share!r}; there are {', '.join(SHARES)}")
        return getattr(self, share) / self.n if share in ("win", "tie", "loss") else getattr(self, share)

    def interval(
        self,
        share: Share = "win_rate",
        level: float = 0.95,
        *,
        design_effect: float = 1.0,
        errors: float | None = None,
    ) -> Interval:
        """Wilson's interval; right for independent judgements, or with the design effect of those that are not.

        Args:
            share: "win", "tie", "loss", "win_rate" (ties as half) or "net".
            level: In (0, 1).
            design_effect: Judgements in clusters (many raters a prompt) count as n / design_effect independent ones.
            errors: How many standard errors to reach, where the design effect was estimated; None: as many as the
                level says.

        Raises:
            ValueError: There is no such share, or an argument is out of its range.
        """
        checked_level(level)
        n, value = self.n / design_effect, self.value(share)
        if share in ("win", "tie", "loss"):
            return wilson(value, n, level, errors=errors)
        # How many ties there are is not known exactly either: as few as there may be, for no interval too narrow.
        ties = wilson(self.tie / self.n, n, level, errors=errors).low
        low, high = wilson(self.win_rate, n, level, ties=ties, errors=errors)
        return Interval(low, high) if share == "win_rate" else Interval(2 * low - 1, 2 * high - 1)

    def sign_test(self) -> float:
        """Exact two-sided p: how likely wins and losses this uneven, or more, if neither side were preferred.

        Ties tell nothing here. Only for independent judgements: `compare` tests over prompts.
        """
        return sign_test(self.win, self.loss)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"win": self.win, "tie": self.tie, "loss": self.loss, "n": self.n, "win_rate": self.win_rate}


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of `wins` against `losses` at even odds; 1.0 where there are neither."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
