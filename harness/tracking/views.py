"""What MLflow's pages show of a grid: the parameters of its runs, a note, and a view that is ready to look at.

A run gets few parameters: K, heads, seed, and what its grids vary; names are the shortest that are clear whatever
the grid. The view is one of MLflow's "Views" (kept with the experiment): the grid's trials grouped by row, its metrics
over the epochs, costs, and all trials in parallel coordinates. Written to MLflow by mirror.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.spec.identity import NEEDS_HEADS, config_to_dict
from harness.spec.labels import Factor, factor_of, short_names
from harness.spec.parts import LISTS, NAME, SINGLE
from harness.spec.spec import COST_METRICS
from harness.store.agreement import code_groups
from harness.system.words import quantity
from harness.tracking.metric_names import safe_name
from model.config import DetectorConfig

if TYPE_CHECKING:
    from harness.spec.grid import Grid

ALWAYS = ("K", "heads", "seed")
COSTS = ("cost/wall_seconds", "cost/seconds_per_step", "cost/peak_memory_mb", "cost/num_parameters")
TRAINING = ("loss", "instability", "instability_gt")
COMPARISON = "Comparison"
MAIN, SYSTEM = "Model metrics", "System metrics"  # what MLflow calls the section of metrics without a group

CODE_TAG = "codetr.code"  # short digest of the code that a trial was made by

SHOWN = 10  # characters of a text that MLflow's parallel coordinates show
MOST_COMPARED = 60  # runs on one page
TRAINING_PAGES = "workflowType=machine_learning"  # MLflow opens with its pages for language models otherwise

# ---- parameters ---------------------------------------------------------------------------------------------------


def params_of(config: Mapping[str, Any]) -> dict[str, Factor]:
    """Every setting of a trial under the name it has in MLflow.

    Args:
        config: as `config_to_dict` writes it, and records hold it.

    Returns:
        `K` (number of auxiliary heads), `heads` (their names, shortened), options of heads as `atss.top_k` (those of a
        second ATSS are `atss.2.top_k`), other parts as `decoder` and `decoder.position`, query groups as `groups` and
        `groups.denoising.number`, and all others by the ends of their dotted keys.
    """
    names, model = _names(), config["model"]
    params: dict[str, Factor] = {"K": len(model["heads"]), **_listed("heads", model["heads"], "")}
    for key, value in _flat(config).items():
        if key == "model.proposals" and value is None:
            value = "default"  # what follows from two_stage
        if key not in [f"model.{name}" for name in LISTS]:
            params[names.get(key) or _part_name(key, names.values())] = _fitting(value)
    return params | _listed("groups", model.get("groups", []), "groups.")


def _listed(name: str, parts: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, Factor]:
    """The parts of a list under `name`, and their options by the parts' names."""
    options = [{key: value for key, value in part.items() if key != NAME} for part in parts]
    kinds = [str(part[NAME]) for part in parts]
    params: dict[str, Factor] = {name: _fitting(kinds)}
    for index, (kind, part) in enumerate(zip(kinds, options, strict=True)):
        nth = kinds[: index + 1].count(kind)
        own = kind if nth == 1 else f"{kind}.{nth}"
        params |= {f"{prefix}{own}.{key}": factor_of(value) for key, value in _flat(part).items()}
    return params


def _fitting(value: Any) -> Factor:
    """A setting as a plain value; a list of names as `AtFaPa` where `atss+faster_rcnn+paa` is too long.

    MLflow's plot shows ten letters of a text, and mistakes values for each other that share them. A text that is no
    list, as the path `/data/rgb+depth`, stays whole.
    """
    text = factor_of(value)
    if not isinstance(value, list | tuple) or len(str(text)) <= SHOWN or "+" not in str(text):
        return text
    parts = (name.partition("*") for name in str(text).split("+"))
    return "".join(name[:2].capitalize() + star + count for name, star, count in parts)


def varied(configs: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the parameters that tell these trials apart, the seed last; settings that need heads are compared only
    among trials that have some."""
    names = _names()
    idle = {name for key, name in names.items() if key.startswith("model.") and key.split(".")[1] in NEEDS_HEADS}
    seen: dict[str, set[str]] = {}
    for config in configs:
        params = params_of(config)
        for name in params.keys() - (set() if params["K"] else idle):
            seen.setdefault(name, set()).add(repr(params[name]))
    order = ("K", "heads", *(name for name in names.values() if name not in ALWAYS))
    options = sorted(seen.keys() - {*order, "seed"})  # of heads and other parts
    return tuple(name for name in (*order, *options, "seed") if len(seen.get(name, ())) > 1)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[path + key] = value
    return flat


@cache
def _names() -> dict[str, str]:
    """Dotted keys of all settings and their short names, the same for every grid and whatever parts there are."""
    config = TrialConfig(model=DetectorConfig(), data=DataConfig(), train=TrainConfig())
    keys = list(_flat(config_to_dict(config)))
    short = short_names(key for key in keys if not _is_of_part(key))
    return {key: short.get(key) or _part_name(key, short.values()) for key in keys}


def _is_of_part(key: str) -> bool:
    """Whether a setting is a part's, but not one of the backbone, which were there before parts had names."""
    section, _, rest = key.partition(".")
    field, _, option = rest.partition(".")
    return section == "model" and field in SINGLE and (field != "backbone" or option == NAME)


def _part_name(key: str, taken: Collection[str]) -> str:
    """`decoder` of `model.decoder.name`, `decoder.position` of its option; of other keys, all of it."""
    name = key.removeprefix("model.")
    short = name.removesuffix(f".{NAME}")
    return key if not key.startswith("model.") else name if short in taken else short


# ---- the view -----------------------------------------------------------------------------------------------------


def view_name(grid: Grid) -> str:
    """What a person reads in the list of views, and as the name of the grid's run."""
    return grid.heading


def view_id(grid: Grid) -> str:
    """The key under which MLflow keeps the view; the same whenever it is written."""
    return id_of_view(view_name(grid))


def id_of_view(name: str) -> str:
    """The key of the view with this name."""
    return _id("view", name)


def grid_tag(grid: Grid) -> str:
    """The tag that a grid's trials have: it holds their row."""
    return safe_name(f"grid.{grid.key}")


def grid_filter(grid: Grid) -> str:
    """MLflow's condition for the runs of the grid's trials, whichever grid's run they stand below."""
    named = f"tags.`{grid_tag(grid)}` LIKE '%'"
    # The key of a variant names its preset; that of a plain grid does not.
    return named if grid.variant.digest else f"{named} AND tags.`codetr.preset` = {quoted(grid.preset)}"


def quoted(text: str) -> str:
    """A text in MLflow's conditions."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def note(grid: Grid, experiment_id: str, run_ids: Sequence[str] = (), code: str = "") -> str:
    """The description of a grid's run, in Markdown.

    Args:
        grid: what it is of.
        experiment_id: of all runs.
        run_ids: of its trials, for the link to MLflow's comparison of them.
        code: which code its trials were made by (see `code_words`).
    """
    page = page_of(experiment_id, view_id(grid))
    seeds = quantity(len(grid.seeds), "seed")
    preset = ", ".join(filter(None, (f"preset {grid.preset}", grid.variant.words)))
    size = f"{len(grid.rows)} rows, {seeds}, {len(grid.trials)} trials, {preset}"
    links = [f"[Rows, curves and costs]({page})"]
    if 1 < len(run_ids) <= MOST_COMPARED:
        runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [experiment_id]))
        compare = f"#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING_PAGES}"
        links.append(f"[Parallel coordinates of its {len(run_ids)} trials]({compare})")
    where = "A trial that another grid asks for too may stand below that one; the links show all of them."
    asked = f"`{grid.command}`" if grid.command and "`" not in grid.command else ""
    parts = (f"**{grid.title}** ({size})", " · ".join(links), grid.description, asked, code, where)
    return "\n\n".join(filter(None, parts))


def page_of(experiment_id: str, view: str = "") -> str:
    """The end of the address at which MLflow lists all runs, or shows a view of them."""
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}" + (f"&viewStateShareKey={view}" if view else "")


def code_words(records: Iterable[Mapping[str, Any]]) -> str:
    """Which code the trials were made by: its short digest and commits, and how many trials had it."""
    made = [record.get("provenance") or {} for record in records]
    groups = code_groups([{"provenance": own} for own in made if own.get("code") or own.get("commit")])
    names = [f"{group.name} of commit {group.commits}" if group.commits else group.name for group in groups]
    if len(groups) < 2:
        return f"All by {names[0]}." if groups else ""
    others = [f" (differs in {group.differing})" if group.differing else "" for group in groups]
    told = ", ".join(
        f"{len(group.records)} by {name}{other}" for group, name, other in zip(groups, names, others, strict=True)
    )
    return f"Trials by different code do not compare: {told}."


def view_state(grid: Grid, params: tuple[str, ...], metrics: Iterable[str]) -> dict[str, Any]:
    """The state of MLflow's page of runs that shows a grid.

    Args:
        grid: what to show.
        params: what its trials differ in (see `varied`).
        metrics: names of all that its runs have; MLflow draws the ones that are not placed here below these sections.
    """
    wanted = [
        safe_name(name) if name in TRAINING or name not in COST_METRICS else f"cost/{name}" for name in grid.metrics
    ]
    main = wanted[0]
    ends = ["cost/wall_seconds", "cost/peak_memory_mb", main]  # the last one gives the colour
    compared = {"selectedParams": _numbers_of(grid, params), "selectedMetrics": list(dict.fromkeys(ends))}
    charts = [_chart("PARALLEL", COMPARISON, showAllRuns=True, **compared), _bar(main, COMPARISON)]
    placed = {COMPARISON: True, MAIN: True}
    for name in dict.fromkeys((*wanted, *TRAINING)):
        charts.append(_bar(name, "cost") if name.startswith("cost/") else _line(name))
    charts += [_bar(name, "cost") for name in COSTS if name not in wanted]
    placed["cost"] = True
    folded = sorted({name.rpartition("/")[0] for name in metrics} - {"", *placed})
    sections = [*placed.items(), *((name, False) for name in folded), (SYSTEM, False)]
    tag = grid_tag(grid)
    columns = [
        f"tags.`{tag}`",
        f"tags.`{CODE_TAG}`",
        *(f"params.`{name}`" for name in params),
        *(f"metrics.`{name}`" for name in wanted),
    ]
    return {
        "searchFilter": grid_filter(grid),
        "orderByKey": f"metrics.`{main}`",
        "orderByAsc": main in COSTS or main in TRAINING,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Duration`"],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [_section(name, shown) for name, shown in sections],
        "isAccordionReordered": True,  # or MLflow sorts the sections by name
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag}]},
        "groupsExpanded": {},
    }


def _numbers_of(grid: Grid, params: Iterable[str]) -> list[str]:
    """Those of the parameters that are numbers, but the seed: MLflow's chart of grouped runs takes no others."""
    found = [params_of(config_to_dict(trial.config)) for trial in grid.trials]
    values = {name: [own[name] for own in found if name in own] for name in params if name != "seed"}
    return [name for name, all_ in values.items() if not any(isinstance(value, str | bool) for value in all_)]


def _id(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]


def _section(name: str, shown: bool) -> dict[str, Any]:
    same = {"isReordered": True, "deleted": False, "isGenerated": False}
    wide = {"columns": 2 if name == COMPARISON else 3}
    return {"uuid": _id("section", name), "name": name, "display": shown, **same, **wide}


def _chart(kind: str, section: str, **own: Any) -> dict[str, Any]:
    same = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    place = {"uuid": _id(kind, repr(own)), "type": kind, "metricSectionId": _id("section", section)}
    return {**place, **same, **own}


def _line(metric: str) -> dict[str, Any]:
    axes = {"lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "xAxisKey": "step"}
    more = {"selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False}
    follow = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return _chart("LINE", MAIN, metricKey=metric, displayName=metric, **axes, **more, **follow)


def _bar(metric: str, section: str) -> dict[str, Any]:
    return _chart("BAR", section, metricKey=metric, displayName=metric.rpartition("/")[2])
