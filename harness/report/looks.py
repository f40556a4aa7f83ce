"""When a claim is looked at while seeds come in, and how sure each look must be.

All looks of a comparison together are wrong at most 5 % of the time: each spends a share α of that, fixed before the
first one, and by the union bound the shares add up (Bonferroni over looks). The interval of a look is Student's t at
1 - α. Early looks spend little, so that only plain cases end there.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UserError

ERROR = 0.05  # of all looks of one comparison together
EARLY = {3: 0.001, 5: 0.004, 7: 0.010, 9: 0.015}  # seeds -> α
LATE = (12, 16, 20)  # share what is left with the last look
FEWEST, DEFAULT, MOST = 3, 12, 24  # seeds


@dataclass(frozen=True)
class Looks:
    """The numbers of seeds at which a claim is looked at, and the α of each."""

    numbers: tuple[int, ...]
    alphas: tuple[float, ...]

    @property
    def most(self) -> int:
        """Seeds at the last look."""
        return self.numbers[-1]

    def as_dict(self) -> dict[str, list[int] | list[float]]:
        """JSON types."""
        return {"seeds": list(self.numbers), "alphas": list(self.alphas)}


def looks_for(max_seeds: int = DEFAULT) -> Looks:
    """The looks up to `max_seeds`.

    Raises:
        UserError: fewer than 3 seeds decide nothing, and no looks are planned beyond 24.
    """
    if not FEWEST <= max_seeds <= MOST:
        raise UserError(f"max_seeds must be from {FEWEST} to {MOST}, got {max_seeds}")
    early = {number: alpha for number, alpha in EARLY.items() if number < max_seeds}
    late = [number for number in LATE if number < max_seeds] + [max_seeds]
    left = ERROR - sum(early.values())
    if max_seeds < LATE[0]:
        return Looks((*early, max_seeds), (*early.values(), left))
    return Looks((*early, *late), (*early.values(), *(left / len(late) for _ in late)))
