"""The page: one file that needs no network, says what the tables say, and comes out the same every time."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.files import to_json
from harness.report import DEFAULT_FORMATS, How, write_report
from harness.report.figures import analysis_figures
from harness.report.page import caption, to_page
from harness.report.section import Picture, Section
from harness.report.tables import make_table
from harness.spec.claims import Claim
from harness.store.results import RunStore
from harness.tracking.mirror import sync
from tests.support.analysis_tables import conflict
from tests.support.fakes import finish
from tests.support.page import Page, command_line_store
from tests.support.report_grid import full_grid, full_records, make_grid, make_record

EXPECTED = Path(__file__).parent / "expected"
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}


def small_page() -> str:
    """A page of one small table, with every part once."""
    grid = make_grid(
        {"no head": {"published": {"AP": 37.1}}, "ATSS": {"published": {"AP": 41.6}}, "PAA <b>": {}},
        title="Heads & more",
        description="Whether a head helps.",
        paper="table08",
        claims=(Claim("A head helps", ("ATSS",), "no head", "AP"), Claim("Equal", ("PAA <b>",), "ATSS", "AP", 0.5)),
    )
    records = [make_record(f"0-{seed}", ap) for seed, ap in enumerate((30.0, 31.0, 29.0))]
    records += [make_record(f"1-{seed}", ap) for seed, ap in enumerate((33.0, 34.5, 32.0))]
    records += [make_record("2-0", None, status="failed", error="ValueError: <script>alert(1)</script>")]
    section = Section(
        grid,
        make_table(grid, records),
        {record["trial_id"]: record for record in records},
        (Picture("Heads & more: AP", TINY_PNG, ("heads_ap.pdf",)),),
        ("heads.md", "heads.csv"),
        ("codetr run heads.yaml --seeds 0,1,2",),
    )
    return to_page([section], "codetr report heads.yaml", ["by hand"], lambda record: [("runs/a b.json", "record")])


def body(page: str) -> str:
    return page[page.index("<body>") :]


TINY_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_the_page_is_as_stored():
    """Without its head, whose style may change; `test_nothing_is_loaded_from_anywhere` reads that."""
    assert body(small_page()) == (EXPECTED / "page.html").read_text()


def test_it_says_what_the_table_says():
    text = Page(small_page()).text
    for part in (
        *("Heads & more", "Paper, Table 8", "Whether a head helps.", "A head helps", "✓ reproduced", "? undecided"),
        *(
            "30.0 ± 1.0",
            "+3.2 [+2.4, +3.9]",
            "could show",
            "37.1",
            "+4.5",
            "no head",
            "1 table asks for 9 trainings. 6 have finished",
        ),
        *(
            "codetr run heads.yaml --seeds 0,1,2",
            "codetr report heads.yaml",
            "faster_coco_eval 1.8.0",
            "16² and 32² px",
        ),
        *("compiled (c++ 12.2.0)", "1 thread a trial", "code c0de12345678", "commit a1b2c3d4e5", "preset digits"),
        *("the smallest difference that so many pairs", "failed: ValueError: <script>alert(1)</script>", "PAA <b>"),
    ):
        assert part in text, part


def test_nothing_is_loaded_from_anywhere():
    for text in (small_page(), full_page()):
        page = Page(text)
        assert page.open == [] and page.elements[0][0] == "html"
        names = {name for name, _ in page.elements}
        assert not names & {"script", "iframe", "object", "embed", "video", "audio", "base", "form", "source"}
        for name, attributes in page.elements:
            for key, value in attributes.items():
                if key in LOADING or (key == "href" and name != "a"):
                    assert value.startswith("data:"), f"<{name} {key}={value}>"
                assert not key.startswith("on")
        assert not re.search(r"url\(|@import|//", re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1])
        for picture in page.all("img"):
            kind, data = picture["src"].split(",", 1)
            assert kind == "data:image/png;base64" and base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n")
            assert picture["alt"] and int(picture["width"]) > 0


def full_page() -> str:
    grid = full_grid()
    return to_page([Section(grid, make_table(grid, full_records()), {})])


def test_every_link_within_the_page_has_its_place():
    for text in (small_page(), full_page()):
        page = Page(text)
        places = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
        targets = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
        assert targets and targets <= places


def test_an_empty_grid_has_a_page():
    grid = make_grid({"a": {}, "b": {}})
    text = Page(to_page([Section(grid, make_table(grid, []), {})])).text
    assert "0 have finished" in text and "6 trials: 6 not run yet" in text and "Claims" not in text


def test_pictures_and_files_of_a_report(tmp_path):
    report = write_report([full_grid()], tmp_path / "all", records=full_records(), how=How({}, "codetr report x"))
    assert report.paths[0] == tmp_path / "all" / "report.html"
    page = Page(report.paths[0].read_text())
    (picture,) = page.all("img")
    assert base64.b64decode(picture["src"].split(",")[1]) == (tmp_path / "all" / "table_09_ap.png").read_bytes()
    links = {link["href"] for link in page.all("a")}
    for link in ("table_09.md", "table_09.tex", "table_09.csv", "table_09_ap.png", "table_09_ap.pdf"):
        assert link in links and (tmp_path / "all" / link).exists()
    alone = write_report([full_grid()], tmp_path / "alone", ("html",), records=full_records())
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["report.html"]
    (same,) = Page(alone.paths[0].read_text()).all("img")
    assert same["src"] == picture["src"]
    assert "Markdown" not in Page(alone.paths[0].read_text()).text


def test_a_caption_names_what_its_curve_is_of():
    names = {
        "queries/atss/positives_per_gt": "atss positives per gt against epochs",
        "discriminability/attention_auc": "IoF-IoB area (attention) against epochs",
        "conflict/left_out_share": "conflict left_out_share against epochs",
        "conflict/floor": "conflict floor against epochs",
        "conflict": "Distance between heads",
    }
    grid = make_grid({"a": {}}, figures=tuple(names), title="Mine")
    history = [{"epoch": epoch, **dict.fromkeys(names, 0.5)} for epoch in (1, 2)]
    drawn = analysis_figures(grid, [make_record("0-0", 1.0, history=history, analysis={"conflict": conflict(1)})])
    assert [caption(grid, name) for name in drawn] == [f"Mine: {words}" for words in names.values()]


def test_the_same_records_give_the_same_bytes(tmp_path):
    first, second = (write_report([full_grid()], tmp_path / name, records=full_records()) for name in "ab")
    assert {path.suffix[1:] for path in first.paths} == set(DEFAULT_FORMATS)
    for one, other in zip(first.paths, second.paths, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


# ---- where records come from


def files(folder: Path, *endings: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix[1:] in endings}


def test_records_alone_give_the_tables_of_the_tracking_store(tmp_path, tracking_store, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    store = RunStore()
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1), metrics=("AP", "APL"))
    for trial in grid.trials[:3]:
        finish(store, trial)
    sync(store, grid)
    write_report([grid], tmp_path / "tracking", uri=tracking_store, source="tracking")
    write_report([grid], tmp_path / "records", source="records")
    made = ("md", "tex", "csv", "png", "pdf")
    assert files(tmp_path / "tracking", *made) == files(tmp_path / "records", *made)
    assert len(files(tmp_path / "records", *made)) == 8
    links = [
        [link["href"] for link in Page((tmp_path / n / "report.html").read_text()).all("a")]
        for n in ("tracking", "records")
    ]
    own = f"../store/runs/{grid.trials[0].trial_id}/result.json"
    assert own in links[0] and own in links[1]
    assert sum("/#/experiments/" in link for link in links[0]) == 3
    assert not any("/#/experiments/" in link for link in links[1])


def test_without_a_tracking_store_the_records_are_read(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid = make_grid({"a": {}}, seeds=(0,))
    finish(RunStore(), grid.trials[0])
    report = write_report([grid], tmp_path / "out", ("md",))
    assert "30.0" in report.text
    assert not (tmp_path / "store" / "mlflow.db").exists()


def test_without_mlflow_the_records_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("harness.tracking.tracking.available", lambda: False)
    grid = make_grid({"a": {}}, seeds=(0,))
    finish(RunStore(), grid.trials[0])
    assert "30.0" in write_report([grid], tmp_path / "out", ("md",)).text


def test_a_record_of_a_killed_trial_does_not_say_that_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid = make_grid({"a": {}}, seeds=(0,))
    RunStore().write_result("0-0", make_record("0-0", 9.0, status="running"))
    assert "interrupted after 4 epochs" in write_report([grid], tmp_path / "out", ("md",), source="records").text


def test_the_command_line_makes_all_of_it_twice_the_same(tmp_path, monkeypatch, capsys):
    arguments = command_line_store(tmp_path, monkeypatch)
    assert main(arguments) == 0
    assert "claim: An auxiliary head with its positive queries helps:" in capsys.readouterr().out
    before = files(tmp_path / "out", *DEFAULT_FORMATS)
    assert len(before) == 9
    page = Page(before["report.html"].decode())
    assert 'href="claims.csv"' in before["report.html"].decode()
    assert "margin" not in page.text  # no claim of this file needs one
    assert f"codetr run {arguments[1]} --preset digits_fast --seeds 0,1" in page.text
    assert main(arguments) == 0
    assert files(tmp_path / "out", *DEFAULT_FORMATS) == before


def test_records_of_data_that_are_not_here_make_their_table(tmp_path, monkeypatch, capsys):
    from tests.support.folders import write_folder

    folder = write_folder(tmp_path / "coco")
    arguments = command_line_store(tmp_path, monkeypatch, data=str(folder))
    assert main(arguments) == 0
    with_data = files(tmp_path / "out", "md", "tex", "csv", "png", "pdf")
    folder.rename(tmp_path / "away")
    assert main(arguments) == 0
    assert files(tmp_path / "out", "md", "tex", "csv", "png", "pdf") == with_data
    capsys.readouterr()
    shutil.rmtree(tmp_path / "store")
    assert main(arguments) == 2  # neither data nor records
    assert "coco" in capsys.readouterr().err


def test_records_of_two_data_sets_that_fit_are_refused(tmp_path, monkeypatch, capsys):
    from tests.support.folders import write_folder

    folder = write_folder(tmp_path / "coco")
    arguments = command_line_store(tmp_path, monkeypatch, data=str(folder))
    store = RunStore(tmp_path / "store")
    record = store.read(store.trials()[0])
    store.write_result("ffffffffffff", {**record, "trial_id": "ffffffffffff", "fingerprint": "another"})
    shutil.rmtree(folder)
    assert main(arguments) == 2
    assert "records of several data sets fit it" in capsys.readouterr().err


def test_mixed_trials_exit_with_two_and_no_files(tmp_path, monkeypatch, capsys):
    arguments = command_line_store(tmp_path, monkeypatch)
    store = RunStore(tmp_path / "store")
    record = store.read(store.trials()[0])
    record["provenance"]["code"] = "another00000"
    (store.dir(record["trial_id"]) / "result.json").write_text(to_json(record))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "different code versions" in error and "code another00000" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--allow-mixed"]) == 0
    assert "Warning: trials of different code versions" in Page((tmp_path / "out" / "report.html").read_text()).text


# ---- in a browser

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MEASURE = (
    "<script>document.title = document.documentElement.scrollWidth - document.documentElement.clientWidth"
    " + ' ' + [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length</script>"
)


def overflow(page: str, width: int, folder: Path) -> tuple[int, int]:
    """Pixels by which the page is wider than a window of `width`, and how many of its boxes scroll."""
    (folder / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"))
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{folder / 'page.html'}"], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<title>(-?\d+) (\d+)</title>", done.stdout)
    assert found, done.stderr[-500:]
    return int(found[1]), int(found[2])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_page_fits_its_window(tmp_path):
    mini = (Path(__file__).parents[1] / "docs" / "mini-paper" / "first" / "report" / "report.html").read_text()
    assert overflow(mini, 1200, tmp_path) == (0, 0)
    assert overflow(mini, 800, tmp_path)[0] == 0  # wide tables scroll within their own boxes
    word = "learning_rate=0.0002,weight_decay=0.0001," * 4
    rows = {word: {}, f"{word}again": {}, **{f"row {number}": {} for number in range(18)}}
    grid = make_grid(rows, title=word, description=word, claims=(Claim(word, (f"{word}again",), word, "AP"),))
    page = to_page([Section(grid, make_table(grid, [make_record(f"{n}-0", 30.0) for n in range(20)]), {})])
    assert overflow(page, 1200, tmp_path) == (0, 0)
    assert overflow(page, 800, tmp_path)[0] == 0


def test_the_head_names_the_data_and_the_settings_of_the_command_line():
    from harness.spec.variants import Variant

    plain = full_grid()
    other = replace(plain, variant=Variant("cards 1f3c, train.epochs=2", "1234abcd"))
    table, records = make_table(plain, full_records()), {str(record["trial_id"]): record for record in full_records()}
    for grid, expected in ((plain, "Preset digits."), (other, "Preset digits, with cards 1f3c, train.epochs=2.")):
        assert expected in to_page([Section(grid, table, records)], "codetr report")
