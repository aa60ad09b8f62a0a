"""What a run of faults came to, as a table whose last line is the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.checker import judge
from tests.faults.history import History

HEAD = "| fault | times | sent | acknowledged | replayed | refused | unknown | lost | doubled |"


@dataclass
class Row:
    """One fault: how often it was done, and what became of the steps."""

    fault: str
    times: int
    histories: list[History] = field(default_factory=list)
    failed: str = ""  # what went wrong besides

    @property
    def lost(self) -> int:
        """Acknowledged steps that are not there."""
        return sum(judge(history).lost for history in self.histories)

    @property
    def doubled(self) -> int:
        """Steps that are there though nobody can have caused them."""
        return sum(judge(history).doubled for history in self.histories)

    @property
    def fine(self) -> bool:
        """Whether nothing is lost, nothing is doubled, and nothing else went wrong."""
        return not (self.lost or self.doubled or self.failed)

    def line(self) -> str:
        """As a line of the table."""
        h = self.histories
        counts = (
            self.times,
            sum(each.sent for each in h),
            sum(each.acknowledged for each in h),
            sum(each.replayed for each in h),
            sum(each.refused for each in h),
            sum(each.unknown for each in h),
            self.lost,
            self.doubled,
        )
        return f"| {self.fault} | " + " | ".join(f"{count:,}" for count in counts) + " |"


def verdict(rows: Sequence[Row], skipped: Sequence[str]) -> str:
    """The last line."""
    acknowledged = sum(history.acknowledged for row in rows for history in row.histories)
    lost, doubled = sum(row.lost for row in rows), sum(row.doubled for row in rows)
    bad = [row.fault for row in rows if not row.fine]
    told = f"{len(rows)} faults, {acknowledged:,} acknowledged steps, {lost} lost, {doubled} doubled"
    if skipped:
        told += f"; not done: {', '.join(skipped)}"
    return f"FAILED: {told}; bad: {', '.join(bad)}" if bad else f"passed: {told}"
