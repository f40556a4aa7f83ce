"""A grid: the trials of an ablation file, the rows that they are the cells of, and what names it.

`harness.spec.grid` makes one of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.spec.claims import Claim
from harness.spec.parts import Setting
from harness.spec.rows import OWN_BASELINES
from harness.spec.search import Search
from harness.spec.space import Values
from harness.spec.trials import Row, Trial, weights_of
from harness.spec.variants import Variant, heading, key_of, variant_of


@dataclass(frozen=True)
class Grid:
    """All trials of an ablation file, each once."""

    name: str
    title: str
    paper: str  # key of the published table, or ""
    preset: str
    trials: tuple[Trial, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""  # the row that gains are measured from, or what the baselines of all rows share
    held: tuple[str, ...] = ()  # names of what a row has in common with its baseline
    published_preset: str = ""  # the preset whose published numbers the rows hold; "" when they name none
    description: str = ""
    figures: tuple[str, ...] = ("ap",)  # which figures its report draws
    claims: tuple[Claim, ...] = ()  # what its rows are said to show
    max_seeds: int | None = None  # at the last look of `codetr decide`; None: the file does not say
    notes: tuple[str, ...] = ()  # what a person should know before running
    command: str = ""  # runs what is missing of it; "" when it was not read from a file
    search: Search | None = None  # None: all trials are listed
    variant: Variant = Variant()  # which data set and settings of the command line it has
    waiting: tuple[tuple[int, Row], ...] = ()  # rows that cannot run yet, each after so many of `rows`
    above: tuple[Setting, ...] = ()  # settings of the command line, which `variant` is of
    crossed: bool = False  # the command line names its data sets, which are an axis
    looked: frozenset[int] | None = None  # seeds that looks took besides the file's; None: these were not asked for
    seen: frozenset[str] = frozenset()  # trials that looks saw

    @property
    def listed(self) -> tuple[Row, ...]:
        """All rows in the order of the file, those that cannot run yet included."""
        rows = list(self.rows)
        for place, row in reversed(self.waiting):
            rows.insert(place, row)
        return tuple(rows)

    @property
    def key(self) -> str:
        """The name of its folder in the store and of its tags in MLflow; unlike others of the same file and preset."""
        return key_of(self.name, self.preset, self.variant)

    @property
    def heading(self) -> str:
        """What people read: `quickstart (digits)`, and the data set and settings of the command line."""
        return heading(self.name, self.preset, self.variant.words)

    @property
    def num_unknown(self) -> int:
        """Trials that a search has still to suggest, from what becomes of those before them."""
        grows = self.search is not None and self.search.spec.algorithm == "optuna"
        return max(0, self.search.spec.num_trials - len(self.trials)) if self.search and grows else 0

    def known_as(self, trials: tuple[Trial, ...], rows: tuple[Row, ...]) -> Grid:
        """This grid where records tell what its data and weights hold, which are not here: so it keeps its key."""
        variant = (
            variant_of_trials(list(self.above), trials, several=self.crossed) if self.variant.digest else self.variant
        )
        return replace(self, trials=trials, rows=rows, variant=variant)

    def suggest(self, values: Values) -> Grid:
        """This grid with one more suggestion of its search; itself where the trial is there already."""
        assert self.search is not None
        trial, row = self.search.make(values)
        if trial.trial_id in self.search.values:
            return self
        search = replace(self.search, values={**self.search.values, trial.trial_id: values})
        return replace(self, trials=(*self.trials, trial), rows=(*self.rows, row), search=search)

    @property
    def axes(self) -> tuple[str, ...]:
        """The dotted keys of the axes that rows are crossed with."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.along))

    @property
    def baseline_words(self) -> str:
        """What gains are measured from: `'no head'`, `'no head' at the same lambda1`, or each row's own."""
        if self.baseline == OWN_BASELINES:
            return self.baseline
        return f"'{self.baseline}'" + (f" at the same {' and '.join(self.held)}" if self.held else "")

    def baseline_of(self, row: Row) -> Row | None:
        """The row that gains of `row` are measured from, which may be itself; None where there is none."""
        label = row.baseline or self.baseline
        return next((other for other in self.listed if label and other.label == label), None)

    def trial(self, trial_id: str) -> Trial:
        """The trial with this id.

        Raises:
            KeyError: it is not in the grid.
        """
        for trial in self.trials:
            if trial.trial_id == trial_id:
                return trial
        raise KeyError(trial_id)


def variant_of_trials(above: list[Setting], trials: Sequence[Trial], *, several: bool = False) -> Variant:
    """`several`: the command line names data sets that are an axis of the grid."""
    if not trials:
        return variant_of(above)
    # of a data set or weights that are not here some trials may have a record that knows them, and others none
    contents, hashes = dict[str | None, str](), dict[str | None, str]()
    for trial in trials:
        data, weights = trial.config.data.path, weights_of(trial.config.model)
        contents[data] = contents.get(data) or trial.fingerprint
        hashes[weights] = hashes.get(weights) or trial.weights_hash or ""
    first = trials[0].config
    data_sets = contents if several else {}
    return variant_of(above, contents[first.data.path], hashes[weights_of(first.model)], data_sets)
