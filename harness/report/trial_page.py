"""One trial on a page of its own: its numbers, its figures, the images that it gets most wrong, and how it was made.

The layout is `trial.html`. As the page of ablation files it needs no network and no script, and the same record gives
the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import TrialConfig
from harness.errors import UserError
from harness.files import listed, read_bytes, write_atomic
from harness.report.by_class import class_columns, object_counts
from harness.report.page import CAPTIONS
from harness.report.protocols import evaluated_by
from harness.report.section import Picture, figure_of
from harness.report.shown_images import images_of_trial
from harness.report.tables import COSTS, metric_of
from harness.report.templates import template
from harness.spec.detection_metrics import ap_of, is_detection_metric, own_name
from harness.spec.identity import config_from_dict
from harness.store.results import ANALYSIS, RunStore

Record = Mapping[str, Any]
OWN_CAPTIONS = {  # of figures that show one trial, by the beginning of their names
    "errors": "What each kind of error costs (TIDE's dAP)",
    "maps_encoder": "Images, and how strong the encoder's features are there",
    "maps_attention": "Images, and where the decoder's queries look",
    "maps_cam": "Images, and what each head's class logits depend on (Grad-CAM)",
    "queries_": "Where queries and their objects lie on an image",
}
BEST = ("threshold", "precision", "recall")  # columns of a record's classes, at the best F1


def write_trial_page(store: RunStore, trial_id: str, out_dir: str | Path, score: float | None = None) -> Path:
    """Write `<out_dir>/<trial_id>.html`; returns the file.

    Args:
        store: of the record.
        trial_id: of a finished trial.
        out_dir: made if absent.
        score: lowest score of a detection in the gallery; None takes that with the best F1 of the split.

    Raises:
        UserError: the trial has not finished.
    """
    status, record = store.look(trial_id)
    if record is None or status != "finished":
        raise UserError(
            f"trial {trial_id} is {status}: only a finished one has a page; `codetr status --all` lists them"
        )
    path = Path(out_dir) / f"{trial_id}.html"
    write_atomic(path, to_trial_page(record, store, score))
    return path


def to_trial_page(record: Record, store: RunStore, score: float | None = None) -> str:
    """The page of a finished record, with the figures and detections that its folder in the store has."""
    key, config = str(record["trial_id"]), config_from_dict(record.get("config") or {})
    found = images_of_trial("what is detected", key, config.data, store, score)
    tables = [_branches(record, config), _others(record), _classes(record, store, found.counts), _costs(record)]
    return template("trial.html").render(
        title=f"Trial {key}",
        lead=_lead(record),
        tables=[own for own in tables if own["rows"]],
        figures=[figure_of(picture) for picture in [*_curves(record), *_kept_figures(store, key)]],
        missing=found.missing,
        words=found.words,
        found_images=found.gallery,
        commands=_commands(key),
        notes=_notes(record),
        configuration=_yaml(record.get("config") or {}),
    )


def _lead(record: Record) -> str:
    cost = record.get("cost") or {}
    seconds, parameters = cost.get("wall_seconds"), cost.get("num_parameters")
    parts = [
        str(record.get("label") or ""),
        f"{len(record.get('history') or ())} epochs",
        "" if seconds is None else f"{seconds / 60:.1f} minutes",
        "" if parameters is None else f"{parameters / 1e6:.2f} million parameters",
        "" if not record.get("finished") else f"finished {str(record['finished'])[:10]}",
    ]
    return "; ".join(part for part in parts if part)


# ---- tables -------------------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> dict[str, Any]:
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "note": note}


def _branches(record: Record, config: TrialConfig) -> dict[str, Any]:
    """A line for each branch that was evaluated, and for its masks, with the protocol below."""
    lines: dict[str, dict[str, str]] = {}
    for name, value in (record.get("metrics") or {}).items():
        if is_detection_metric(name):
            branch = name.rpartition("/")[0] or "decoder"
            label = f"{branch}, masks" if name.rpartition("/")[2].startswith("segm_") else branch
            lines.setdefault(label, {})[own_name(name)] = _written(value, metric_of(own_name(name)))
    columns = list(dict.fromkeys(name for own in lines.values() for name in own))
    rows = [[label, *(own.get(name, "") for name in columns)] for label, own in lines.items()]
    return _table("Detections", ["branch", *columns], rows, evaluated_by([config], [record.get("provenance") or {}]))


def _others(record: Record) -> dict[str, Any]:
    """Every other number of the record, as its metrics are headed in tables."""
    rows = []
    for name, value in sorted((record.get("metrics") or {}).items()):
        is_number = isinstance(value, int | float | None) and not name.endswith("/version")
        if not is_detection_metric(name) and is_number:
            metric = metric_of(name)
            rows.append([metric.heading, _written(value, metric)])
    return _table("Analyses", ["number", "value"], rows)


def _classes(record: Record, store: RunStore, of_data: Mapping[str, int]) -> dict[str, Any]:
    """AP of each class with its objects and, where errors were measured, the score of its best F1.

    Objects are those of the data set, or of the record where that is not here.
    """
    per_class, ap = record.get("per_class") or {}, metric_of("AP")
    columns, counts = class_columns(record, store), of_data or object_counts(record, store)
    lines = zip(*(columns[key] for key in ("class", *BEST)), strict=True) if columns else ()
    best = {name: own for name, *own in lines}
    order = [name for name in counts if name in per_class] + [name for name in per_class if name not in counts]
    rows = []
    for name in order:
        row = [name, f"{counts[name]:,}" if name in counts else "", _written(per_class[name], ap)]
        if best:
            score, *shares = best.get(name, [None] * len(BEST))
            row += ["–" if score is None else f"{score:g}", *(_written(share, ap) for share in shares)]
        rows.append(row)
    return _table("Classes", ["class", "objects", "AP", *(["score of best F1", *BEST[1:]] if best else [])], rows)


def _costs(record: Record) -> dict[str, Any]:
    cost = record.get("cost") or {}
    rows = [[own.heading, _written(cost[own.name], own)] for own in COSTS if cost.get(own.name) is not None]
    return _table("Cost", ["number", "value"], rows)


def _written(value: float | None, metric: Any) -> str:
    from harness.report.cells import written

    return "–" if value is None else written(value * 1.0, metric)


# ---- figures ------------------------------------------------------------------------------------------------------


def _curves(record: Record) -> list[Picture]:
    """AP and the loss over the epochs."""
    history = record.get("history") or ()
    names = (*ap_of(record.get("metrics") or {}), "loss")
    there = [name for name in names if sum(entry.get(name) is not None for entry in history) > 1]
    if not there:
        return []
    from harness.figures.epochs import draw_curves
    from harness.figures.style import figure_bytes

    label = str(record.get("label") or record["trial_id"])
    drawn = [figure_bytes(draw_curves([(label, history)], name), "png") for name in there]
    return [Picture(f"{name} against epochs", png) for name, png in zip(there, drawn, strict=True)]


def _kept_figures(store: RunStore, key: str) -> list[Picture]:
    """Those that the trial's analysis left; the sheet of detections is the gallery here."""
    folder = store.dir(key) / ANALYSIS
    paths = [path for path in files_of(folder) if path.suffix == ".png" and path.stem != "detections"]
    pictures = []
    for path in paths:
        data = read_bytes(path)
        if data is not None and data.startswith(b"\x89PNG"):
            known = CAPTIONS | OWN_CAPTIONS
            fitting = [name for name in known if path.stem.startswith(name)]
            words = known[max(fitting, key=len)] if fitting else path.stem.replace("_", " ")
            pictures.append(Picture(words, data))
    return pictures


def files_of(folder: Path) -> list[Path]:
    """Files of a folder in order of their names; none where there is no folder."""
    return sorted(listed(folder)) if folder.is_dir() else []


# ---- how ----------------------------------------------------------------------------------------------------------


def _commands(key: str) -> list[str]:
    lines = (
        ["report", key],
        ["analyse", key],
        ["detect", key, "IMAGES"],
        ["export-model", key, "--onnx", f"{key}.onnx"],
    )
    return [shlex.join(["codetr", *words]) for words in lines]


def _notes(record: Record) -> list[str]:
    made = record.get("provenance") or {}
    names = ("commit", "device", "ops", "torch", "threads", "ranks", "precision", "evaluator", "protocol")
    told = [f"{name.replace('_', ' ')}: {made[name]}" for name in names if isinstance(made.get(name), str | int)]
    analysis = record.get("analysis") or {}
    if analysis.get("metrics"):
        told.append(f"analysed {analysis.get('num_images')} images: {', '.join(analysis['metrics'])}")
    return [*told, f"fingerprint of the data: {record.get('fingerprint') or 'unknown'}"]


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
