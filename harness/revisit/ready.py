"""Whether what is asked of a detector can be done here; told of each before anything is computed.

A trial's record holds numbers of the data that its `fingerprint` is of. Where other data lie in their place, nothing
that is measured on them goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from harness.config import DataConfig
from harness.errors import ReadError, UserError
from harness.passwords import masked
from harness.revisit.asked import Request
from harness.revisit.kept import is_own, left_detections
from harness.revisit.trained import Found, check_weights
from harness.spec.trials import fingerprints_of
from harness.store.lease import LeaseLost
from harness.store.results import RunStore

Job = tuple[Found, Request]


class Several:
    """Detectors that are taken one by one: what is wrong with one is told, and stops no other.

    Where a command is about a single one, it is raised.

    Args:
        jobs: that can be begun.
        refused: what is wrong with those that cannot.
        say: takes lines.
    """

    def __init__(self, jobs: list[Job], refused: list[UserError], say: Callable[[str], None]) -> None:
        self.left, self.count, self._say = jobs, len(jobs) + len(refused), say
        for error in refused:
            self._tell(error)

    def each(self, do: Callable[[Found, Request], None]) -> None:
        """Do something with all that are left; of those only the ones stay left with which it went well."""
        done = []
        for job in self.left:
            try:
                do(*job)
                done.append(job)
            except (UserError, ReadError, LeaseLost) as error:
                self._tell(error)
        self.left = done

    def _tell(self, error: Exception) -> None:
        if self.count == 1:
            raise error
        for line in masked(str(error)).splitlines():
            self._say(f"error: {line}")

    def code(self, what: str) -> int:
        """The exit code: 1 where some are not left, which a line tells (how many "could be analysed", say).

        Raises:
            UserError: none is left.
        """
        if self.count and not self.left:
            raise UserError(f"none of the {self.count} {what}")
        if len(self.left) < self.count:
            self._say(f"{len(self.left)} of {self.count} {what}")
        return int(len(self.left) < self.count)


def contents(jobs: Iterable[Job], store: RunStore) -> dict[DataConfig, str]:
    """Fingerprints of the data of trials whose records are to be added to; "" where they are not here."""
    own = [found.config.data for found, request in jobs if is_own(found, request, store)]
    return fingerprints_of(own, required=False, notes=[])  # what is not here is told where it is opened


def check(found: Found, request: Request, store: RunStore, contents: Mapping[DataConfig, str]) -> None:
    """Make sure that the weights are here, if they are needed, and that a record is added to from its own data.

    Raises:
        UserError: they are gone, or other data lie where the trial's own lay.
    """
    if request.evaluate or request.settings.metrics or left_detections(found, store) is None:
        check_weights(found)
    recorded = str(found.record.get("fingerprint") or "")
    here = contents.get(found.config.data) if is_own(found, request, store) else None
    if recorded and here and here != recorded:
        path = found.config.data.path
        changed = f"{path} holds other data" if path else "its digit scenes are drawn otherwise"
        raise UserError(
            f"{found.where}: {changed} now (fingerprint {here} instead of {recorded}), and its record takes numbers of "
            "its own data only; --out FOLDER keeps those of these elsewhere, --data FOLDER names others"
        )
