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
            if match := re.match(r"K = (\d)", label):
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
        ("figure01_convergence", "table02_plain_baselines"),
        ("figure02_discriminability", "table02_plain_baselines"),
        ("figure05_instability", "table02_plain_baselines"),
        ("figure06_distances", "table07_heads"),
        ("figure08_09_conflict", "table07_heads"),
        ("table02_plain_baselines", "table07_heads"),
    ],
)
def test_what_is_said_to_train_once_for_both_does(name: str, others: str, grids: dict[str, Grid]) -> None:
    assert {trial.trial_id for trial in grids[name].trials} <= {trial.trial_id for trial in grids[others].trials}


@pytest.mark.parametrize(
    ("name", "alone"),
    [("repeats", 1), ("head_pairs", 13), ("num_queries", 4), ("decoder_depth", 4), ("table10_longer_schedules", 3)],
)
def test_what_a_file_adds_to_table_7(name: str, alone: int, grids: dict[str, Grid]) -> None:
    shared = {trial.trial_id for trial in grids["table07_heads"].trials}
    assert len({trial.trial_id for trial in grids[name].trials} - shared) == alone


def test_the_readme_counts_rows_and_trials(grids: dict[str, Grid]) -> None:
    text = (ABLATIONS / "README.md").read_text()
    found = re.search(r"these (\d+) rows are (\d+) different trials", text)
    trials = {trial.trial_id for one in grids.values() for trial in one.trials}
    assert found and (int(found[1]), int(found[2])) == (sum(len(one.rows) for one in grids.values()), len(trials))
    for name, one in grids.items():
        assert re.search(rf"\[{name}\.yaml\]\({name}\.yaml\) \| .* \| {len(one.rows)} \|", text), name
