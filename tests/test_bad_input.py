"""Mutated ablation files and annotation files: each is refused with lines for a person, or taken as it is written.

Never another exception than `UserError`, never a value that silently becomes another one. What was accepted is
compared with an own, plain reading of the file. More examples: `-m slow`.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from harness.__main__ import main
from harness.config import DataConfig
from harness.data import fingerprint, open_splits
from harness.data.masks import packed
from harness.errors import UserError
from harness.spec.grid import Grid, open_grid
from harness.spec.identity import NEEDS_HEADS, config_to_dict
from harness.spec.parts import LISTS, ROOMS, SINGLE, part_name
from harness.spec.presets import DETECTOR, SIZE, SIZES
from harness.spec.resolve import known_keys
from harness.spec.rows import OWN_BASELINES
from harness.spec.spec import SHIPPED
from harness.spec.strict import Mistakes, read_yaml
from model.heads import HEADS
from tests.support.folders import tables, write_folder
from tests.support.own_parts import install

PRESET = "digits_fast"
FILES = {path.stem: path.read_text() for path in sorted(SHIPPED.glob("*.yaml"))}
# One of each kind: rows, published numbers by preset, rows that differ by preset, analyses, a search.
VARIED = ("quickstart", "table09_components", "table10_longer_schedules", "figure02_discriminability")
EACH_FILE = [
    *(pytest.param(name, 25, id=f"{name}-25") for name in (*VARIED, "search_loss_weights")),
    *(pytest.param(name, 400, id=f"{name}-400", marks=pytest.mark.slow) for name in FILES),
]
PRESETS = {path.stem: path.read_text() for path in sorted((SHIPPED / "presets").glob("digits*.yaml"))}
DETECTORS = {path.stem: path.read_text() for path in sorted((SHIPPED / "presets" / "models").glob("*.yaml"))}


def examples(count: int) -> Any:
    """So many examples, always the same ones. Not made smaller after a failure: that takes minutes."""
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=count, deadline=None, derandomize=True, phases=phases, suppress_health_check=list(HealthCheck)
    )


# ---- mutations ----------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.5, 1e-300, 1e300, 10**9, 10**30, -(10**400), math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    " ",
    "no",
    "1e-4",
    "010",
    "1:30",
    "null",
    "~",
    "ä\u0301ñ漢字",
    "\u202eabc",
    "a.b",
    "..",
    "/",
    "../../x",
    "*",
    "&a",
)
ODD = ("\u2028", "\x85", "\ufeff", "🙂", "[bold]", "%s", "{0}", "'", '"', "\\", "a" * 300, "a\nb", "\t")
junk = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, *ODD, None, True, False, [], {}]),
    st.sampled_from(
        [[None], [[]], {"a": None}, {"": 1}, {1: 2}, {None: 0}, {True: 1}, [1, "a"], ["atss", "atss"], "atss"]
    ),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


def nested(depth: int, value: Any, mapping: bool) -> Any:
    for _ in range(depth):
        value = {"a": value} if mapping else [value]
    return value


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything below the root."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, child in children for found in ((*path, key), *places(child, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """`tree` with one to `most` changes somewhere in it."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        known = places(tree)
        if not known:
            return copy.deepcopy(draw(junk))
        *above, last = draw(st.sampled_from(known))
        holder = tree
        for key in above:
            holder = holder[key]
        kind = draw(st.sampled_from(("replace", "replace", "delete", "rename", "copy", "wrap", "swap", "deep")))
        if kind == "replace":
            holder[last] = copy.deepcopy(draw(junk))  # later changes are not for the next example
        elif kind == "delete":
            del holder[last]
        elif kind == "rename" and isinstance(holder, dict):
            name = draw(st.sampled_from([f"{last}s", str(last)[:-1], str(last).upper(), f"{last}.x", f" {last}", "x"]))
            holder[name] = holder.pop(last)
        elif kind == "copy":
            target = draw(st.sampled_from(known))
            spot = tree
            for key in target[:-1]:
                spot = spot[key] if isinstance(spot, dict) or key < len(spot) else holder
            if isinstance(spot, list):
                spot.append(copy.deepcopy(holder[last]))
            elif isinstance(spot, dict):
                spot[str(last)] = copy.deepcopy(holder[last])
        elif kind == "wrap":
            holder[last] = draw(st.sampled_from([[holder[last]], {str(last): holder[last]}, str(holder[last])]))
        elif kind == "swap" and isinstance(holder, list):
            holder.reverse()
        elif kind == "deep":
            holder[last] = nested(draw(st.sampled_from((3, 40))), holder[last], draw(st.booleans()))
    return tree


@st.composite
def mutated_text(draw: st.DrawFn, text: str) -> str:
    """`text` with one or two changes that a slip of the hand or of an editor makes."""
    for _ in range(draw(st.integers(1, 2))):
        lines = text.splitlines()
        index = draw(st.integers(0, max(len(lines) - 1, 0)))
        kind = draw(st.sampled_from(("double", "drop", "indent", "insert", "anchor", "merge", "cut", "deep", "tag")))
        line = lines[index] if lines else ""
        if kind == "double":
            lines.insert(index, line)
        elif kind == "drop" and lines:
            del lines[index]
        elif kind == "indent" and lines:
            lines[index] = draw(st.sampled_from(["  ", "\t", " "])) + line
        elif kind == "insert" and lines:
            at = draw(st.integers(0, len(line)))
            odd = draw(
                st.sampled_from(
                    [*ODD, ":", "-", "#", "{", "}", "[", "]", ",", "|", ">", "!", "%", "@", "`", "\x00", "?"]
                )
            )
            lines[index] = line[:at] + odd + line[at:]
        elif kind == "anchor" and lines:
            name = draw(st.sampled_from("ab"))
            lines[index] = line.replace(": ", f": {draw(st.sampled_from('&*'))}{name} ", 1)
        elif kind == "merge":
            lines.insert(
                index, draw(st.sampled_from(["<<: *plain", "<<: {rows: []}", "<<: 3", "<<: [{name: a}, {name: b}]"]))
            )
        elif kind == "cut":
            lines = lines[:index]
        elif kind == "deep":
            lines.insert(index, "x: " + draw(st.sampled_from(["[", "{a: "])) * draw(st.sampled_from((5, 300))))
        elif kind == "tag" and lines:
            tag = draw(
                st.sampled_from(["!!python/object:os.system", "!!binary", "!!set", "!!timestamp", "!x", "!!float"])
            )
            lines[index] = line.replace(": ", f": {tag} ", 1)
        text = "\n".join(lines) + "\n"
    return text


# ---- ablation files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places_of_run(tmp_path_factory):
    """A folder with a store that stays empty."""
    folder = tmp_path_factory.mktemp("bad-input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODETR_STORE", str(folder / "store"))
        yield folder


def plan_of(text: str, folder: Path, capsys: Any, *options: str) -> Grid | None:
    """Plan a file through the command line; the grid, or None where it was refused as it must be."""
    path = folder / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    capsys.readouterr()
    code = main(["plan", str(path), "--preset", PRESET, *options])
    out, err = capsys.readouterr()
    remarks = [line for line in err.split("\n")[:-1] if not line.startswith("note: ")]
    assert not (folder / "store").exists() and "Traceback" not in out + err
    if code == 2:
        assert not out and remarks and all(line.startswith("error: ") and len(line) > 10 for line in remarks), err
        return None
    assert code == 0 and not remarks and "trial" in out
    return open_grid(path, PRESET, [word for word in options if word != "--set"], require_data=False)


def flat(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Settings by path, later ones winning; `{a.b: 1}` and `{a: {b: 1}}` are the same, so are `neck: x` and
    `neck: {name: x}`. Lists are values."""
    if path[:1] == ("model",) and path[1:] and path[1] in SINGLE and isinstance(node, str) and not path[2:]:
        path = (*path, "name")
    if not isinstance(node, dict) or not node:
        return {path: node} if path and node != {} else {}
    return {
        full: value for key, child in node.items() for full, value in flat(child, (*path, *str(key).split("."))).items()
    }


PATHS = (("data", "path"), ("model", "backbone", "weights"))  # made absolute, for workers elsewhere


def same(written: Any, taken: Any) -> bool:
    if isinstance(written, list) and isinstance(taken, list):
        return len(written) == len(taken) and all(map(same, written, taken))
    if isinstance(written, bool) or isinstance(taken, bool):
        return written is taken
    return float(written) == taken if isinstance(taken, float) and isinstance(written, int) else bool(written == taken)


def check_visible(tree: dict[str, Any], grid: Grid) -> None:
    """Everything that the file says is in the grid, as it was written."""
    for name, value in {**tree}.items():
        if name in ("title", "name", "paper", "description", "baseline") and value:
            assert getattr(grid, name) == value or (name == "baseline" and grid.baseline == OWN_BASELINES), name
    metrics = tree.get("metrics", ["AP", "AP50", "AP75"])
    if grid.search is not None:  # what it ranks by comes first
        metrics = list(dict.fromkeys((grid.search.spec.metric, *metrics)))
    assert list(grid.seeds) == tree.get("seeds", [0]) and list(grid.metrics) == metrics
    rows = tree.get("rows") or [{"label": ""}]
    if tree.get("axes") or tree.get("search"):
        return  # every combination or suggestion is a row; tests/test_grid.py, tests/test_search.py
    assert [row.label for row in grid.listed] == [row["label"] for row in rows]
    for made, row in zip(grid.listed, rows, strict=True):
        assert (made.note, made.needs) == (row.get("note", ""), row.get("needs", ""))
        if made.needs:
            continue
        trial = grid.trial(made.trial_ids[0])
        config = {**config_to_dict(trial.config), "runtime": vars(trial.runtime), "analyse": trial.analyse.as_dict()}
        wanted = flat(tree.get("base", {}))
        by_preset = (owner.get("presets") or {} for owner in (tree, row))
        shared, own_preset = (layers.get(PRESET, {}) for layers in by_preset)
        for layer in (shared, row.get("set", {}), own_preset):
            own = flat(layer)
            wanted = {p: v for p, v in wanted.items() if not any(p[: len(q)] == q for q in own)} | own
        if ("analyse",) in wanted:  # short for its metrics
            wanted["analyse", "metrics"] = wanted.pop(("analyse",))
        for path, value in wanted.items():
            if path == DETECTOR:
                assert trial.detector in DETECTORS
            elif path[:2] == ("model", "head_defaults") or (not config["model"]["heads"] and path[1] in NEEDS_HEADS):
                continue
            elif path[0] == "model" and path[1] in LISTS:
                names = [entry["name"] if isinstance(entry, dict) else entry for entry in value]
                parts = config["model"][path[1]]
                assert [part["name"] for part in parts] == names
                for entry, part in zip(value, parts, strict=True):
                    options = flat(entry) if isinstance(entry, dict) else {}
                    assert all(same(v, at(part, p)) for p, v in options.items())
            elif path[:2] == ("model", "proposals") and config["model"]["proposals"] is None:
                assert value in ("binary" if config["model"]["two_stage"] else "learned", None)  # what follows anyway
            elif path in PATHS and value is not None:
                assert at(config, path) == str(Path(value).expanduser().absolute())
            else:
                assert same(value, at(config, path)), (path, value, at(config, path))


def at(node: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        node = node[name]
    return node


def check_plan(text: str, folder: Path, capsys: Any) -> None:
    grid = plan_of(text, folder, capsys)
    if grid is not None:
        tree = read_yaml(text, "", Mistakes())
        check_visible(tree, grid)


@pytest.mark.parametrize(("name", "count"), EACH_FILE)
def test_a_mutated_ablation_file_is_refused_or_taken_as_written(name, count, places_of_run, capsys):
    @examples(count)
    @given(mutated(read_yaml(FILES[name], name, Mistakes())))
    def check(tree: Any) -> None:
        check_plan(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), places_of_run, capsys)

    check()


@pytest.mark.parametrize(("name", "count"), EACH_FILE)
def test_a_mistyped_ablation_file_is_refused_or_taken_as_written(name, count, places_of_run, capsys):
    @examples(count)
    @given(mutated_text(FILES[name]))
    def check(text: str) -> None:
        check_plan(text, places_of_run, capsys)

    check()


@pytest.mark.parametrize("count", [25, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PRESETS)
def test_a_mutated_preset_is_refused_or_its_settings_are_there(name, count, places_of_run, capsys):
    @examples(count)
    @given(mutated(read_yaml(PRESETS[name], name, Mistakes())))
    def check(tree: Any) -> None:
        preset = places_of_run / "mine.yaml"
        preset.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        (places_of_run / "mutated.yaml").write_text("rows: [{label: a, set: {model.heads: [atss]}}]")
        capsys.readouterr()
        argv = ["plan", str(places_of_run / "mutated.yaml"), "--preset", str(preset)]
        code = main(argv)
        err = capsys.readouterr().err.replace("note: ", "error: ")
        assert code in (0, 2) and all(line.startswith("error: ") for line in err.split("\n")[:-1])
        if code == 0:
            config = open_grid(argv[1], argv[3], require_data=False).trials[0]
            known = {**config_to_dict(config.config), "runtime": vars(config.runtime)}
            for path, value in flat(read_yaml(preset.read_text(), "", Mistakes())).items():
                if path == (SIZE,):
                    assert value in SIZES
                elif path[:2] not in (("model", "head_defaults"), ("model", "heads")) and path not in PATHS:
                    assert same(value, at(known, path)), (path, value)

    check()


@pytest.mark.parametrize("count", [25, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["h_deformable", "dab_c5"])
def test_a_mutated_detector_is_refused_or_its_settings_are_there(name, count, places_of_run, capsys):
    folder = places_of_run / "presets" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (places_of_run / "mutated.yaml").write_text("rows: [{label: a, set: {model.preset: mine, model.heads: [atss]}}]")

    @examples(count)
    @given(mutated(read_yaml(DETECTORS[name], name, Mistakes())))
    def check(tree: Any) -> None:
        (folder / "mine.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        capsys.readouterr()
        argv = ["plan", str(places_of_run / "mutated.yaml"), "--preset", PRESET]
        code = main(argv)
        err = capsys.readouterr().err.replace("note: ", "error: ")
        assert code in (0, 2) and all(line.startswith("error: ") for line in err.split("\n")[:-1])
        if code == 0:
            trial = open_grid(argv[1], PRESET, require_data=False).trials[0]
            tree = read_yaml((folder / "mine.yaml").read_text(), "", Mistakes())
            own = flat({size: tree.pop(size, None) for size in SIZES}[PRESET] or {})
            replaced = [q[:2] if q[2:] == ("name",) else q for q in own]  # who names a part replaces all of it
            general = {
                p: v for p, v in flat(tree).items() if not any(q[: len(p)] == p or p[: len(q)] == q for q in replaced)
            }
            for path, value in (general | own).items():
                if path[:2] not in (("model", "heads"), ("model", "groups")) and path not in PATHS:
                    assert same(value, at(config_to_dict(trial.config), path)), (path, value)

    check()


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_value_of_any_setting_is_refused_or_taken(count, places_of_run, capsys):
    """In the file and by --set; with a head, so that every setting has an effect."""

    @examples(count)
    @given(st.sampled_from(sorted(known_keys())), junk)
    @example("model.num_queries", True)
    @example("train.learning_rate", 10**400)
    @example("data.train_short_sides", [160.0])
    @example("model.backbone.weights", "some.pth")
    @example("model.backbone.weights", "a\nb")
    def check(key: str, value: Any) -> None:
        if key in ("model.heads", "model.head_defaults", "model.preset"):
            return  # the mutated files have them
        tree = {"base": {key: value}, "rows": [{"label": "a", "set": {"model.heads": ["atss"]}}]}
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        grid = plan_of(text, places_of_run, capsys)
        if grid is not None:
            check_visible(read_yaml(text, "", Mistakes()), grid)
        plain = "rows: [{label: a, set: {model.heads: [atss]}}]"
        word = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
        again = plan_of(plain, places_of_run, capsys, "--set", f"{key}={word}")
        if grid is not None and again is not None:
            assert again.trials[0].trial_id == grid.trials[0].trial_id
        assert (grid is None) == (again is None) or value == {}

    check()


@pytest.mark.parametrize("count", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_any_value_of_any_setting_of_a_head_is_refused_or_taken(count, places_of_run, capsys):
    @examples(count)
    @given(st.sampled_from(sorted(HEADS)), st.data(), junk)
    def check(name: str, data: Any, value: Any) -> None:
        from harness.config import TrainConfig, TrialConfig
        from harness.spec.identity import config_to_dict
        from model.config import DetectorConfig

        config = TrialConfig(DetectorConfig(heads=(HEADS[name].Config(),)), DataConfig(), TrainConfig())
        [head] = config_to_dict(config)["model"]["heads"]
        path = data.draw(st.sampled_from([path for path in places(head) if path != ("name",)]))
        entry: dict[str, Any] = value
        for key in reversed(path):
            entry = {key: entry}
        tree = {"rows": [{"label": "a", "set": {"model.heads": [{"name": name, **entry}]}}]}
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        grid = plan_of(text, places_of_run, capsys)
        if grid is not None:
            check_visible(read_yaml(text, "", Mistakes()), grid)

    check()


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_parts_in_layers_are_refused_or_the_last_named_stands(count, places_of_run, capsys, monkeypatch):
    """A part and settings of it, some of them junk, in the file's base, a row and --set."""
    install(monkeypatch)
    keys = st.sampled_from(["size", "size", "size", "most", "depth", "x"])
    options = st.dictionaries(keys, st.one_of(st.integers(1, 9), st.integers(1, 9), junk), max_size=2)
    names = st.sampled_from(["mine", "mine", "yours", "yours", "focal", "binary", "none"])
    with_name = st.tuples(options, names, st.booleans()).map(
        lambda drawn: {"name": drawn[1], **drawn[0]} if drawn[2] else {**drawn[0], "name": drawn[1]}
    )
    layer = st.one_of(names, options, with_name, with_name, st.sampled_from([{}, None, 3]))

    @examples(count)
    @given(st.sampled_from(SINGLE), st.lists(layer, min_size=3, max_size=3))
    def check(field: str, layers: list[Any]) -> None:
        key, (base, row, last) = f"model.{field}", map(copy.deepcopy, layers)
        rows = [{"label": "a", "set": {"model.heads": ["atss"], key: row}}]
        text = yaml.safe_dump({"base": {key: base}, "rows": rows}, sort_keys=False, allow_unicode=True)
        word = yaml.safe_dump(last, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
        grid = plan_of(text, places_of_run, capsys, "--set", f"{key}={word}")
        if grid is None:
            return
        accepted.append(field)
        standing = name = part_name(field, None, grid.trials[0].config.model.two_stage)
        wanted: dict[str, Any] = {}
        for written in layers:
            given = written if isinstance(written, dict) else {"name": standing if written is None else written}
            if given.get("name", name) != name or written is None:
                wanted = {}
            name, wanted = given.get("name", name), wanted | given
        told = config_to_dict(grid.trials[0].config)["model"][field] or {"name": standing}
        assert told["name"] == name
        assert all(same(value, told[option]) for option, value in wanted.items() if option != "name"), (layers, told)

    accepted: list[str] = []
    check()
    assert len(accepted) > count / 20 and len(set(accepted)) > 5


@pytest.mark.parametrize("count", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_any_list_of_groups_is_refused_or_taken(count, places_of_run, capsys):
    names = st.sampled_from(["main", "positives", *ROOMS["groups"].names, "denoising"])
    entry = st.one_of(names, names.map(lambda name: {"name": name}), junk)

    @examples(count)
    @given(st.one_of(st.lists(entry, max_size=3), junk))
    def check(value: Any) -> None:
        text = yaml.safe_dump({"rows": [{"label": "a", "set": {"model.groups": value}}]}, allow_unicode=True)
        grid = plan_of(text, places_of_run, capsys)
        if grid is not None:
            check_visible(read_yaml(text, "", Mistakes()), grid)

    check()


DEEP = (
    "title: {}",
    "rows: {}",
    "seeds: {}",
    "base: {}\nrows: [{{label: a}}]",
    "rows: [{{label: a, set: {{model.num_queries: {}}}}}]",
    "rows: [{{label: a, set: {{model.heads: {}}}}}]",
    "rows: [{{label: a, set: {{model.heads: [{{name: atss, top_k: {}}}]}}}}]",
    "rows: [{{label: a, set: {{model.heads: [atss], model.head_defaults: {}}}}}]",
    "rows: [{{label: a, set: {{model.decoder: {}}}}}]",
    "rows: [{{label: a, set: {{model.groups: {}}}}}]",
    "rows: [{{label: a, published: {}}}]",
    "axes: {{train.epochs: [{}]}}",
    "presets: {{digits_fast: {}}}\nrows: [{{label: a}}]",
)


@pytest.mark.parametrize("text", DEEP)
def test_deep_nesting_is_refused(text, places_of_run, capsys):
    for depth in (20, 140, 1000):
        for begin, end in (("[", "]"), ("{a: ", "}")):
            deep = text.format(begin * depth + "1" + end * depth)
            assert plan_of(deep, places_of_run, capsys) is None, depth


# ---- annotation files ---------------------------------------------------------------------------------------------


def with_masks() -> dict[str, Any]:
    content = tables(0)
    for number, row in enumerate(content["annotations"]):
        x, y, w, h = row["bbox"]
        image = next(image for image in content["images"] if image["id"] == row["image_id"])
        size = [image["height"], image["width"]]
        polygon = [[x, y, x + w, y, x + w, y + h]]
        counts = {"size": size, "counts": [5, 10, size[0] * size[1] - 15]}
        row["segmentation"] = (polygon, counts, {"size": size, "counts": packed(counts, *size)["counts"]})[number % 3]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("coco"))


def check_annotations(content: bytes, folder: Path, masks: bool) -> None:
    """Refused with lines, or every image and object of the file is there with its numbers."""
    path = folder / "annotations" / "instances_train.json"
    path.write_bytes(content)
    config = DataConfig(path=str(folder))
    fingerprint(config)
    try:
        train, _ = open_splits(config, progress=lambda line: None, with_masks=masks)
        for index in range(len(train)):
            image, boxes, labels, _ = train.load(index)
            assert image.shape[:2] == train.image_hw[index] and len(boxes) == len(labels)
            if masks:
                train.masks(index)
    except UserError as error:
        assert str(error).strip() and all(line.strip() for line in str(error).split("\n"))
        assert str(folder) in str(error)
        return
    told = json.loads(content)
    made = train.ground_truth

    def images(tree: Any) -> Counter[Any]:
        return Counter((row["id"], row["height"], row["width"]) for row in tree["images"])

    def objects(tree: Any) -> Counter[Any]:
        return Counter(
            (row["image_id"], row["category_id"], tuple(map(float, row["bbox"])), int(row.get("iscrowd", 0)))
            for row in tree["annotations"]
        )

    assert images(made) == images(told) and objects(made) == objects(told)
    assert {row["id"]: row["name"] for row in made["categories"]} == {r["id"]: r["name"] for r in told["categories"]}
    for row in told["annotations"]:
        w, h = row["bbox"][2:]
        own, of_box = (any(area == other["area"] for other in made["annotations"]) for area in (row.get("area"), w * h))
        if row.get("area"):
            assert own or (of_box and row["area"] > w * h)  # such an area cannot be right
        else:
            assert of_box
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("masks", [False, True])
def test_mutated_annotations_are_refused_or_taken_as_written(count, masks, folder):
    @examples(count)
    @given(mutated(with_masks() if masks else tables(0)))
    def check(tree: Any) -> None:
        check_annotations(json.dumps(tree).encode(), folder, masks)

    check()


@pytest.mark.parametrize("count", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_torn_annotation_files_are_refused_or_taken_as_written(count, folder):
    whole = json.dumps(tables(0)).encode()
    bytes_in = st.sampled_from(
        [b"", b"\x00", b"\xff", b"NaN", b"1e999", b"}", b"[", b'"', b",", b"\xef\xbb\xbf", b"[" * 5000]
    )

    @examples(count)
    @given(st.integers(0, len(whole)), st.integers(0, 40), bytes_in)
    @example(0, 0, b"\xef\xbb\xbf")
    @example(len(whole), 0, b"\x00")
    def check(start: int, length: int, new: bytes) -> None:
        check_annotations(whole[:start] + new + whole[start + length :], folder, False)

    check()
