"""What can cost a clip its row, and nothing more than its row."""

from __future__ import annotations

#: Every value of a row's status. `ok` rows have a feature and are ranked; all others stay, unranked, with a reason.
STATUSES = ("ok", "unreadable", "too_short", "static", "no_caption", "non_finite", "duplicate", "failed")


class ClipError(ValueError):
    """One clip cannot be scored. The run goes on; the row keeps `status` and the message as its reason.

    Args:
        status: One of `STATUSES` other than `ok`.
        reason: What was found, what was expected, and the remedy, in one sentence.
    """

    def __init__(self, status: str, reason: str):
        if status not in STATUSES or status == "ok":
            raise ValueError(f"status must be one of {STATUSES[1:]}, got {status!r}")
        super().__init__(reason)
        self.status = status
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.status, self.reason)


class NonFiniteError(ValueError):
    """A training met a loss or a gradient that is not finite, and has stopped before it stepped on it."""
