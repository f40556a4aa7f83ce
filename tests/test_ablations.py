"""The ablation files that come with the program: what their headers say is so, and equal rows have equal names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.spec.grid import Grid, open_grid

ABLATIONS = Path(__file__).parents[1] / "ablations"
FILES = [file for file in sorted(ABLATIONS.glob("*.yaml")) if "\nrows:" in file.read_text()]  # a search has no rows


def grid(name: str, **options: object) -> Grid:
    return open_grid(ABLATIONS / f"{name}.yaml", "digits", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def grids() -> dict[str, Grid]:
    return {file.stem: open_grid(file) for file in FILES}


def models(grid: Grid) -> dict[str, object]:
    return {row.label: grid.trial(row.trial_ids[0]).config.model for row in grid.rows}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_header_gives_the_command_and_its_trials(file: Path) -> None:
    header = "".join(re.findall(r"^#.*\n", file.read_text().partition("\nname:")[0], re.MULTILINE))
    assert "aper" in header.splitlines()[0], "the first line says what it is in the paper, or that it is not there"
    found = re.search(r"codetr run (\S+)( --seeds 0,1,2)? +(\d+) trials on digit scenes", header)
    assert found and found[1] == f"ablations/{file.name}"
    assert len(grid(file.stem, seeds=[0, 1, 2] if found[2] else None).trials) == int(found[3])
    preset = re.search(r"--preset (coco_\w+)", header)
    assert file.stem == "quickstart" or preset, "and the command at paper scale"
    elsewhere = "what they cost stands there" in header
    assert elsewhere or ("minutes" in header and "GPU hours" in " ".join(header.replace("#", "").split()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_published_numbers_belong_to_a_preset(file: Path) -> None:
    found = open_grid(file)
    published = [row for row in found.rows if row.published]
    assert published and found.published_preset.startswith("coco_")


def test_names_that_count_heads_count_them(grids: dict[str, Grid]) -> None:
    counted = 0
    for found in grids.values():
        for label, model in models(found).items():
            if match := re.search(r"\bK = (\d)", label):
                counted += 1
                assert len(model.heads) == int(match[1]), f"{found.name}: {label}"  # type: ignore[attr-defined]
    assert counted > 40


def test_the_same_name_is_the_same_detector(grids: dict[str, Grid]) -> None:
    known: dict[str, object] = {}
    for found in grids.values():
        for label, model in models(found).items():
            if label.startswith("K = "):
                assert known.setdefault(label, model) == model, f"{found.name}: {label}"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("figure01_convergence", ["table02_plain_baselines"]),
        ("figure02_discriminability", ["table02_plain_baselines", "table09_components", "table11_branches"]),
        ("figure05_instability", ["table02_plain_baselines"]),
        ("figure06_distances", ["table07_heads"]),
        ("figure08_09_conflict", ["table07_heads"]),
    ],
)
def test_what_is_said_to_train_once_for_all_does(name: str, others: list[str], grids: dict[str, Grid]) -> None:
    there = {trial.trial_id for other in others for trial in grids[other].trials}
    assert {trial.trial_id for trial in grids[name].trials} <= there


@pytest.mark.parametrize("scale", ["coco_r50_12e", "coco_r50_36e"])
def test_what_trains_once_for_all_does_so_at_paper_scale(scale: str) -> None:
    def configs(name: str, preset: str = scale) -> list[object]:
        return [trial.config for trial in open_grid(ABLATIONS / f"{name}.yaml", preset, require_data=False).trials]

    table02 = configs("table02_plain_baselines")
    for name in ("figure01_convergence", "figure05_instability"):
        assert all(config in table02 for config in configs(name)), name
    assert table02 == configs("table02_plain_baselines", "coco_r50_36e"), "its rows set their length themselves"


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        *(("repeats", 1), ("head_pairs", 18), ("num_queries", 4), ("decoder_depth", 4)),
        *(("table10_longer_schedules", 3), ("table02_plain_baselines", 9), ("table03_strong_baselines", 9)),
        *(("table04_comparison", 6), ("hybrid", 15), ("detectors", 13)),
    ],
)
def test_what_a_file_adds_to_table_7(name: str, alone: int, grids: dict[str, Grid]) -> None:
    shared = {trial.trial_id for trial in grids["table07_heads"].trials}
    assert len({trial.trial_id for trial in grids[name].trials} - shared) == alone


def test_the_readme_counts_rows_and_trials(grids: dict[str, Grid]) -> None:
    text = (ABLATIONS / "README.md").read_text()
    found = re.search(r"these (\d+) rows are (\d+) different trials", text)
    trials = {trial.trial_id for one in grids.values() for trial in one.trials}
    rows = [row for one in grids.values() for row in one.listed]
    assert found and (int(found[1]), int(found[2])) == (len(rows), len(trials))
    for name, one in grids.items():
        assert re.search(rf"\[{name}\.yaml\]\({name}\.yaml\) \| .* \| {len(one.listed)} \|", text), name


def test_the_whole_tables_have_the_rows_of_the_paper(grids: dict[str, Grid]) -> None:
    published = {
        name: [row.published.get("AP") for row in grids[name].listed] for name in grids if "table01" < name < "table07"
    }
    assert published["table02_plain_baselines"] == [
        *(39.4, 41.5, 41.8, 41.2, 43.1, 43.5, 37.1, 42.3, 42.9, 43.3, 46.8, 46.5),
    ]
    assert published["table03_strong_baselines"] == [
        *(47.1, 48.7, 49.5, 49.4, 51.0, 51.2, 55.2, 56.4, 56.9, 58.5, 59.3, 59.5),
    ]
    assert published["table04_comparison"] == [49.5, 58.5, 52.1, 58.9, 60.0, 54.8, 60.7]
    assert published["table05_vit"] == [None, 65.9] and published["table06_lvis"] == [56.9, 67.9]


def test_no_row_waits(grids: dict[str, Grid]) -> None:
    assert not any(one.waiting for one in grids.values())


def test_what_a_file_may_say_can_be_run(tmp_path: Path) -> None:
    text = (ABLATIONS / "README.md").read_text().partition("## What an ablation file may say")[2]
    examples = re.findall(r"```yaml\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    assert len(examples) >= 2
    for place, example in enumerate(examples):
        (tmp_path / f"example{place}.yaml").write_text(example)
        found = open_grid(tmp_path / f"example{place}.yaml", require_data=False)
        assert len(found.rows) >= 2, example
