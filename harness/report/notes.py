"""The small print of a table: why a number is missing, and how those that are there were made.

Whoever reads a table should be able to tell, without asking, which data, code and evaluator stand behind it,
and be warned where rows do not stand on the same ground.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from harness.report.ground import mixtures
from harness.report.protocols import evaluated_by
from harness.report.statistics import FEWEST_FOR_P
from harness.spec.detection_metrics import COCO_METRICS, LVIS_METRICS, RARE_TO_FREQUENT, limit_of, limit_words, own_name
from harness.spec.error_metrics import branch_of, is_error_metric
from harness.spec.hub import title
from harness.spec.rows import OWN_BASELINES
from harness.spec.space import describe as describe_search
from harness.spec.training_length import recorded_length, training_length
from harness.store.agreement import Group, short
from harness.system.words import plural, quantity
from model.backbones.configs import asked

if TYPE_CHECKING:
    from harness.config import DataConfig, TrialConfig
    from harness.report.tables import TableRow
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
WARNING = "WARNING: "
PAPER = "Co-DETR (arXiv 2211.12860)"
LONGEST_ERROR = 160  # characters
SIZES = {"APS": "small", "APM": "medium", "APL": "large"}
FREQUENCIES = dict(zip(RARE_TO_FREQUENT, ("rare", "common", "frequent"), strict=True))


def missing_reason(record: Record | None) -> str:
    """Say why a trial has no numbers to show; `record` is None when the store knows nothing of it."""
    status = "pending" if record is None else str(record.get("status", "failed"))
    if record is None or status == "pending":
        return "not run yet"
    if status == "failed":
        return f"failed: {last_line(record.get('error')) or 'no message was recorded'}"
    done = len(record.get("history") or ())
    after = f"after {quantity(done, 'epoch')}" if done else "before the end of the first epoch"
    if status == "running":
        return f"still running, {after}"
    if status == "pruned":
        return f"pruned {after}: a search gave it up; run it in a grid to finish it"
    return f"{status} {after}; run it again to resume"


def undefined_reason(metric: str, records: Sequence[Record]) -> str:
    """Say why finished trials have no number for `metric`."""
    if is_error_metric(metric):
        return _without_errors(metric, records)
    branch, slash, _ = metric.rpartition("/")
    name, at, limit = own_name(metric).partition("@")
    evaluated = any(f"{branch}{slash}AP{at}{limit}" in (record.get("metrics") or {}) for record in records)
    if name in SIZES and evaluated:
        return f"{metric} is undefined: the validation split has no {SIZES[name]} objects"
    if not at and (reason := _other_protocol(metric, name, records)):
        return reason
    if name in FREQUENCIES and evaluated:
        found = any(metric in (record.get("metrics") or {}) for record in records)
        why = (
            f"has no objects of {FREQUENCIES[name]} classes" if found else "does not tell how frequent its classes are"
        )
        return f"{metric} is undefined: the validation split {why}"
    if limit_of(metric):
        return f"{metric} was not recorded; evaluate.max_detections={limit} measures it"
    return f"{metric} was not recorded"


def _without_errors(metric: str, records: Sequence[Record]) -> str:
    """Why there is no number for a metric of errors, and how it comes into the record."""
    measured = [record.get("metrics") or {} for record in records]
    if any(metric in own for own in measured):
        why = "nothing is right at any score" if "best_f1" in metric else "the validation split has no objects"
        return f"{metric} is undefined: {why}"
    branch = branch_of(metric)
    if branch and not any(f"{branch}/AP" in own for own in measured):
        return f"{metric} was not recorded; evaluate.branches must name {branch}"
    return f"{metric} was not recorded; `codetr analyse TRIAL --metrics errors` adds it to a finished trial"


def _other_protocol(metric: str, name: str, records: Sequence[Record]) -> str:
    """Why a metric that is only COCO's or only LVIS's was not measured; empty where it could have been."""
    protocols = {str((record.get("provenance") or {}).get("protocol") or "coco") for record in records}
    if protocols == {"lvis"} and name in COCO_METRICS and name not in LVIS_METRICS:
        return f"{metric} is COCO's, and the validation split is evaluated as LVIS's, which has AR300"
    if protocols == {"coco"} and name in LVIS_METRICS and name not in COCO_METRICS:
        return f"{metric} is LVIS's: only images with neg_category_ids and not_exhaustive_category_ids are evaluated so"
    return ""


def describe(grid: Grid, rows: Sequence[TableRow], records: Sequence[Record]) -> tuple[str, ...]:
    """Return the notes of a table made from finished `records`; warnings come first."""
    if not records:
        return (f"preset {grid.preset}; no trial has finished",)
    warnings, versions = _versions(grid, records)
    configs = [grid.trial(record["trial_id"]).config for record in records]
    provenance = [record.get("provenance") or {} for record in records]
    data = sorted({_data(config.data, record) for config, record in zip(configs, records, strict=True)})
    weights = sorted({_weights(config, record) for config, record in zip(configs, records, strict=True)} - {""})
    made = [f"preset {grid.preset}", " and ".join(data), " and ".join(weights), _schedule(configs, records), versions]
    made += [_distinct(provenance, "ops", "operators "), _distinct(provenance, "device", "on ")]
    made += [_precision(provenance), _threads(provenance)]
    notes = [*(WARNING + text for text in warnings), *_reading(grid, rows), *_limits(configs, provenance)]
    return (*notes, evaluated_by(configs, provenance), "; ".join(part for part in made if part))


def _reading(grid: Grid, rows: Sequence[TableRow]) -> list[str]:
    """How to read deviations, gains and the paper's numbers, as far as the table holds them."""
    most = max(row.num_finished for row in rows)
    pairs = [cell.gain.n for row in rows for cell in row.cells.values() if cell.gain]
    notes = []
    if grid.search is not None:
        notes.append(f"best first; search: {describe_search(grid.search.spec)}")
        notes.append("the best of many trials looks better than it is: train it with other seeds before you report it")
    elif most == 1:
        notes.append("one seed a row: no deviation, interval or p-value can be given, and small gains may be noise")
    else:
        few, many = (pick(row.num_finished for row in rows if row.num_finished) for pick in (min, max))
        differ = few != many and len({row.num_trials for row in rows if row.num_trials}) > 1
        there = grid.seeds if grid.looked is None else sorted({seed for row in rows for seed in row.values})
        seeds = f"as many seeds as each row's claims took, {few} to {many}" if differ else f"seeds {listed(there)}"
        notes.append(f"mean ± sample standard deviation over {seeds}")
    if pairs:
        one_row = not grid.held and grid.baseline != OWN_BASELINES
        text = f"gain: over {'the row ' if one_row else ''}{grid.baseline_words}, paired by seed"
        if max(pairs) > 1:
            text += ", with its 95 % t interval"
        if max(pairs) >= FEWEST_FOR_P:
            text += f"; p: exact two-sided sign-flip permutation test, from {FEWEST_FOR_P} pairs on"
        notes.append(text)
    if any(cell.published is not None for row in rows for cell in row.cells.values()):
        setting = f", published for {grid.published_preset}" if grid.published_preset else ""
        scale = "; at another scale compare gains, not levels" if grid.published_preset != grid.preset else ""
        place = f", {paper_place(grid.paper)}" if grid.paper else ""
        notes.append(f"paper: {PAPER}{place}{setting}{scale}")
    return notes


def paper_place(key: str) -> str:
    """Return `table09` as `Table 9`; any other text as it is."""
    match = re.fullmatch(r"(table|figure)0*(\d+)", key)
    return f"{match[1].capitalize()} {match[2]}" if match else key


def _versions(grid: Grid, records: Sequence[Record]) -> tuple[list[str], str]:
    """Warnings about what the trials do not share, and the commits and short digests of their code."""
    provenance = [record.get("provenance") or {} for record in records]
    warnings = []
    for what, groups in mixtures(grid, records).items():
        warnings.append(f"trials of different {what}: {', '.join(map(_counted, groups))}")
    dirty = sum(made.get("dirty") in (True, "true", "True") for made in provenance)
    if dirty:
        warnings.append(f"{dirty} of {len(records)} trials ran with uncommitted changes in the code")
    commits = Counter(str(made.get("commit") or "")[:10] or "unknown" for made in provenance)
    ordered = [commit for commit, _ in sorted(commits.items(), key=lambda item: (-item[1], item[0]))]
    words = f"{plural('commit', len(ordered))} {', '.join(ordered)}"
    digests = sorted({short(made.get("code")) for made in provenance} - {""})
    return warnings, words + (f", code {', '.join(digests)}" if digests else "")


def _counted(group: Group) -> str:
    """A group's name and how many trials are of it."""
    number = len(group.records)
    more = f"; differs in {group.differing}" if group.differing else ""
    return f"{group.name} ({quantity(number, 'trial')}{more})"


def _data(config: DataConfig, record: Record) -> str:
    """The data set in words, with its fingerprint."""
    if config.path:
        words = PurePath(config.path).name
    else:
        digits = config.digits
        words = f"digit scenes, {digits.num_train} + {digits.num_val} images of {digits.image_size} px"
        words += f", difficulty {digits.difficulty:g}"
    fingerprint = str(record.get("fingerprint") or "")[:12]
    return f"{words} ({fingerprint})" if fingerprint else words


def _weights(config: TrialConfig, record: Record) -> str:
    """The file of pretrained weights, with the hash of its content; empty without one."""
    if (path := asked(config.model.backbone, "weights")) is None:
        return ""
    weights_hash = str(record.get("weights_hash") or "")[:12]
    words = f"pretrained weights {title(path)}"
    return f"{words} ({weights_hash})" if weights_hash else words


def _schedule(configs: Sequence[TrialConfig], records: Sequence[Record]) -> str:
    """Epochs, steps where at least some were asked for, and batch size, where all trials share them."""
    lengths = {_length(config, record) for config, record in zip(configs, records, strict=True)}
    sizes = {config.train.batch_size for config in configs}
    words = [length for length in lengths if len(lengths) == 1]
    words += [f"batch {number}" for number in sizes if len(sizes) == 1]
    return ", ".join(words)


def _length(config: TrialConfig, record: Record) -> str:
    """How long a trial was trained; the steps run are told beside those asked for."""
    train = config.train
    epochs = quantity(train.epochs, "epoch")
    if not train.min_steps:
        return epochs
    known = recorded_length(train, record.get("history"))
    if known is None and config.data.path is None and not config.data.repeat_threshold:
        known = training_length(train, config.data.digits.num_train)
    return f"{epochs}, more where these are fewer than {train.min_steps:,} steps" if known is None else str(known)


def _distinct(provenance: Sequence[Record], key: str, before: str = "") -> str:
    """The distinct values of a provenance entry."""
    values = sorted({str(entry[key]) for entry in provenance if entry.get(key)})
    return before + " and ".join(values) if values else ""


def _precision(provenance: Sequence[Record]) -> str:
    """In which precision trials were trained and evaluated, where it is not fp32 for all."""
    trained, evaluated = (
        sorted({entry.get(key, "fp32") for entry in provenance}) for key in ("precision", "evaluation_precision")
    )
    if trained == evaluated == ["fp32"]:
        return ""
    return f"trained in {' and '.join(trained)}, evaluated in {' and '.join(evaluated)}"


def _threads(provenance: Sequence[Record]) -> str:
    """How many threads a trial had."""
    numbers = sorted({int(entry["threads"]) for entry in provenance if entry.get("threads")})
    return f"{' or '.join(map(str, numbers))} {plural('thread', numbers[-1])} a trial" if numbers else ""


def _limits(configs: Sequence[TrialConfig], provenance: Sequence[Record]) -> list[str]:
    """Where the validation images hold more objects than AP counts detections."""
    known = [entry["beyond_limit"] for entry in provenance if entry.get("beyond_limit")]
    return list(
        dict.fromkeys(limit_words(words, min(config.evaluate.max_detections for config in configs)) for words in known)
    )


def last_line(text: Any, longest: int = LONGEST_ERROR) -> str:
    """Return the last line of `text`, cut at `longest` characters."""
    lines = str(text or "").strip().splitlines()
    last = " ".join(lines[-1].split()) if lines else ""
    return last if len(last) <= longest else last[: longest - 1] + "…"


def listed(values: Iterable[Any]) -> str:
    """Return `0, 1, 2`."""
    return ", ".join(map(str, values))
