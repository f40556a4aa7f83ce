"""The figures of one trial or checkpoint: all that its analysis left, for its folder and its run's artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.figures import TABLES, attempt, figures_of_analyses
from harness.spec.error_metrics import COSTS, PREFIX, branch_of, is_error_metric

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from harness.data.coco import CocoDataset
    from harness.report.detected import Sheet

NUM_EXAMPLES = 4  # images whose maps and queries are shown

Examples = Mapping[int, "tuple[np.ndarray, np.ndarray]"]


def trial_figures(
    label: str,
    tables: Mapping[str, Mapping[str, Any]],
    *,
    history: Sequence[Mapping[str, Any]] = (),
    maps: Mapping[str, np.ndarray] | None = None,
    examples: Examples | None = None,
    sheet: Sheet | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Figure]:
    """Draw whatever one trial has; what it lacks is left out.

    Args:
        label: the trial's name in legends and titles.
        tables: of the analysis, by name: `discriminability`, `conflict`, `queries`, `gradient`, `transfer`.
        history: of its record, for the instability and the errors.
        maps: `image_<id>` (discriminability), `attention_<id>` and `cam_<head>_<id>`, each [h, w].
        examples: by image id (image [H, W, 3] uint8, boxes [G, 4] xyxy in its pixels), of the images to show.
        sheet: of detections on the worst images (see `harness.report.detected`).
        say: takes a line for each figure that could not be drawn; the others are there.

    Returns:
        Figures by name: `instability`, `errors`, `discriminability`, `conflict`, `conflict_matrix`, `queries`,
        `influence`, `queries_<id>` (positions on that image), `maps_encoder`, `maps_attention`, `maps_cam` and
        `detections`.
    """
    shown, heads = examples or {}, list((tables.get("conflict") or {}).get("heads") or ())
    figures = attempt("instability", partial(_instability, label, history), say)
    for name in TABLES:
        for figure in attempt(name, partial(figures_of_analyses, name, [(label, tables)]), say).values():
            figures[name] = figure  # one trial has one matrix, whose name needs no label
    figures |= attempt("errors", partial(_errors, history), say)
    figures |= attempt("queries", partial(_positions, tables.get("queries") or {}, shown), say)
    figures |= attempt("maps", partial(_maps, maps or {}, heads, shown), say)
    if sheet is not None:
        figures |= attempt("detections", lambda: {"detections": sheet.draw()}, say)
    return figures


def _instability(label: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    if not any(entry.get("instability") is not None for entry in history):
        return {}
    from harness.figures.epochs import draw_instability

    return {"instability": draw_instability([(label, history)])}


def _errors(history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    branches = _branches(history)
    if not branches:
        return {}
    from harness.figures.errors import draw_error_costs

    return {"errors": draw_error_costs(branches)}


def _branches(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """What each kind of error costs each branch in the last epoch; none where that was not measured."""
    last = history[-1] if history else {}
    names = dict.fromkeys(branch_of(name) for name in last if is_error_metric(name))
    costs = {branch: {kind: last.get(f"{branch}/{PREFIX}{kind}".lstrip("/")) for kind in COSTS} for branch in names}
    return [
        (branch or "decoder", {kind: float(cost) for kind, cost in own.items() if cost is not None})
        for branch, own in costs.items()
        if None not in own.values()
    ]


def _positions(table: Mapping[str, Any], examples: Examples) -> dict[str, Figure]:
    """Where queries lie, on each example image that has objects."""
    from harness.figures.queries import draw_query_positions

    return {
        f"queries_{example['image_id']}": draw_query_positions(examples[example["image_id"]][0], example)
        for example in table.get("examples") or ()
        if example["image_id"] in examples
    }


def _maps(maps: Mapping[str, np.ndarray], heads: Sequence[str], examples: Examples) -> dict[str, Figure]:
    """The examples beside their maps: of features and attention, and of what each head looks at."""
    from harness.figures.maps import draw_maps
    from harness.figures.style import head_name

    sheets = {
        "maps_encoder": ("D(F)", {"encoder features": "image"}),
        "maps_attention": ("D(attention)", {"decoder cross-attention": "attention"}),
        "maps_cam": ("Grad-CAM", {head_name(head): f"cam_{head}" for head in heads}),
    }
    figures = {}
    for name, (scale, columns) in sheets.items():
        shown = [image for image in examples if any(f"{key}_{image}" in maps for key in columns.values())]
        found = {title: [maps.get(f"{key}_{image}") for image in shown] for title, key in columns.items()}
        found = {title: own for title, own in found.items() if any(one is not None for one in own)}
        if found:
            figures[name] = draw_maps([examples[image] for image in shown], list(found.items()), scale)
    return figures


def save_trial_figures(
    folder: Path,
    label: str,
    tables: Mapping[str, Mapping[str, Any]],
    *,
    maps: Mapping[str, np.ndarray],
    examples: Examples,
    history: Sequence[Mapping[str, Any]] = (),
    dataset: CocoDataset | None = None,
    detections: Sequence[Mapping[str, Any]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Draw whatever one trial has (see `trial_figures`) and write it as PNG and PDF; returns the files.

    Args:
        folder: for the files.
        label: as in `trial_figures`, like `tables`, `maps` and `history`.
        tables: of the analysis.
        maps: of the analysis.
        examples: of the analysis; the first `NUM_EXAMPLES` are shown.
        history: of the trial's record.
        dataset: what was evaluated, with `detections`: for the sheet of the worst images.
        detections: in COCO's results format; None: there is no sheet.
        say: as in `trial_figures`.
    """
    shown = dict(list(examples.items())[:NUM_EXAMPLES])
    sheet = None
    if dataset is not None and detections is not None:
        from harness.report.detected import sheet_of

        sheet = sheet_of(dataset, detections)
    figures = trial_figures(label, tables, history=history, maps=maps, examples=shown, sheet=sheet, say=say)
    files: dict[str, list[Path]] = {}
    for name, figure in figures.items():  # some mistakes show only when a figure is laid out
        files |= attempt(name, partial(_saved, name, figure, folder), say)
    return [path for paths in files.values() for path in paths]


def _saved(name: str, figure: Figure, folder: Path) -> dict[str, list[Path]]:
    from harness.figures.style import save_figure

    return {name: save_figure(figure, folder / name)}
