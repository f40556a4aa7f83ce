"""The command line: exit codes, what is printed where, and how fast help and plan come."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import commands, store_commands
from harness.__main__ import main
from harness.spec.grid import open_grid
from tests.support.folders import write_folder

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "ablations" / "quickstart.yaml")


def grid(**options):
    return open_grid(QUICKSTART, "digits_fast", **options)


def record(store, trial, status, **fields):
    store.write_result(trial.trial_id, {"trial_id": trial.trial_id, "label": trial.label, "status": status, **fields})


def codetr(*argv, **options):
    return subprocess.run(
        [sys.executable, "-m", "harness", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, **options
    )


# ---- speed and help


def processor_seconds(*argv):
    """What a command costs, the better of two runs; the clock would tell of other work on the machine."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    costs = []
    for _ in range(2):
        before = spent()
        assert codetr(*argv).returncode == 0
        costs.append(spent() - before)
    return min(costs)


def test_help_is_quick_and_loads_nothing_heavy():
    assert processor_seconds("--help") < 0.5
    code = "import sys, harness.__main__ as m; m.build_parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "pydantic", "yaml", "rich", "numpy"} & set(done.stdout.split())


def test_plan_is_quick_and_needs_torch_only_for_heads(tmp_path):
    assert processor_seconds("plan", QUICKSTART) < 3.0
    file = tmp_path / "plain.yaml"
    file.write_text("rows: [{label: a, set: {model.heads: []}}]")
    code = f"import sys; from harness.__main__ import main; main(['plan', {str(file)!r}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "pandas", "matplotlib"} & set(done.stdout.split())


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    told = capsys.readouterr().out
    assert caught.value.code == 0
    for command in ("plan", "run", "status", "report", "sync", "ui", "logs", "diff", "retry", "rm", "gc", "doctor"):
        assert f"\n    {command} " in told and (hasattr(commands, command) != hasattr(store_commands, command))


def test_no_command_shows_help_and_fails(capsys):
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


def test_version_names_the_commit(capsys, monkeypatch):
    monkeypatch.setenv("CODETR_COMMIT", "abc123")
    assert main(["--version"]) == 0
    assert "abc123" in capsys.readouterr().out


# ---- plan and status


def test_plan_shows_trials_and_what_is_done(store, capsys):
    first, second, third = grid().trials
    record(store, first, "finished")
    record(store, second, "failed", error="ValueError: broken")
    assert main(["plan", QUICKSTART, "--preset", "digits_fast"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [found] = [line for line in lines if first.trial_id in line]
    assert "heads=none" in found and found.endswith("finished")
    [found] = [line for line in lines if third.trial_id in line]
    assert "heads=atss positive_queries=true" in found and found.endswith("pending")
    assert lines[-1] == "3 trials: 1 finished, 1 failed, 1 pending"


def test_plan_without_the_data_set_shows_no_ids(store, capsys, tmp_path):
    assert main(["plan", QUICKSTART, "--data", str(tmp_path / "away")]) == 0
    out, err = capsys.readouterr()
    assert "\n - " in out and str(tmp_path / "away") in err


def test_plan_starts_nothing(store, capsys):
    main(["plan", QUICKSTART])
    assert not store.root.exists()


def test_status_tells_result_progress_and_reason(store, capsys):
    first, second, _ = grid().trials
    record(store, first, "finished", metrics={"AP": 41.25}, cost={"wall_seconds": 90.0})
    record(store, second, "failed", error="ValueError: image 3 [broken]")
    assert main(["status", "--all"]) == 0
    out = capsys.readouterr().out
    assert "AP 41.2" in out and "in 1.5 min" in out and "ValueError: image 3 [broken]" in out
    assert out.rstrip().endswith("2 trials: 1 finished, 1 failed")


def test_status_of_a_file_shows_its_trials_only(store, capsys):
    record(store, SimpleNamespace(trial_id="0" * 12, label="foreign"), "finished")
    assert main(["status", QUICKSTART, "--preset", "digits_fast"]) == 0
    out = capsys.readouterr().out
    assert "foreign" not in out and "3 trials: 3 pending" in out


def test_status_of_an_empty_store(store, capsys):
    assert main(["status"]) == 0
    assert str(store.root) in capsys.readouterr().out


def test_store_option_reaches_workers_as_an_absolute_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODETR_STORE", "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--store", "mine"]) == 0
    assert os.environ["CODETR_STORE"] == str(tmp_path / "mine")


# ---- run


@pytest.fixture
def run_grid(monkeypatch):
    """Stands in for the schedule: notes what it was asked, and fails as many trials as told."""
    asked = []

    def fake(grid, store, **options):
        asked.append((grid, options))
        return SimpleNamespace(finished=(), failed=fake.failed, interrupted=fake.interrupted, skipped=())

    fake.failed, fake.interrupted, fake.asked = (), (), asked
    monkeypatch.setitem(sys.modules, "harness.schedule.schedule", SimpleNamespace(run_grid=fake))
    return fake


def test_run_hands_its_options_on(store, run_grid, capsys):
    argv = ["run", QUICKSTART, "--preset", "digits_fast", "--executor", "local", "--concurrent", "3", "--limit", "2"]
    argv += ["--cpus-per-trial", "0.5", "--gpus-per-trial", "0.25", "--seeds", "1,2", "--set", "train.epochs=3"]
    assert main(argv) == 0
    [(asked, options)] = run_grid.asked
    assert (options["executor"], options["concurrent"], options["limit"]) == ("local", 3, 2)
    assert not options["fail_fast"] and options["only"] is None  # so that a search may suggest more
    assert len(asked.trials) == 6 and {trial.config.train.epochs for trial in asked.trials} == {3}
    assert {(t.runtime.cpus_per_trial, t.runtime.gpus_per_trial) for t in asked.trials} == {(0.5, 0.25)}
    assert "An auxiliary head and its positive queries" in capsys.readouterr().out


def test_run_exits_1_when_a_trial_failed(store, run_grid, capsys):
    run_grid.failed = ("0" * 12,)
    assert main(["run", QUICKSTART]) == 1


def test_run_exits_1_when_a_trial_was_lost_but_not_when_it_was_not_wanted_yet(store, run_grid, capsys):
    run_grid.interrupted = ("0" * 12,)
    assert main(["run", QUICKSTART]) == 1
    assert main(["run", QUICKSTART, "--limit", "1"]) == 0


def test_interruption_exits_130_and_says_how_to_go_on(store, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "plan", interrupted)
    assert main(["plan", QUICKSTART]) == 130
    assert "continues" in capsys.readouterr().err


# ---- mistakes


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml: no such ablation file"),
        (["plan", QUICKSTART, "--preset", "digit"], "preset 'digit': unknown preset; did you mean 'digits'?"),
        (
            ["plan", QUICKSTART, "--preset", "dab_c5"],
            "preset 'dab_c5': unknown preset; 'dab_c5' is a detector: --set model.preset=dab_c5",
        ),
        (["plan", QUICKSTART, "--set", "model.headz=[]"], "--set model.headz: unknown key; did you mean 'heads'?"),
        (["plan", QUICKSTART, "--set", "model.num_queries=x"], "--set model.num_queries: must be a whole number"),
        (
            ["plan", QUICKSTART, "--set", "model.heads=[rcnn]"],
            "--set model.heads.0: unknown head 'rcnn'; did you mean 'mask_rcnn'? known: atss",
        ),
        (["run", QUICKSTART, "--data", "nowhere"], "nowhere"),
        (["run", QUICKSTART, "--cpus-per-trial", "0"], "cpus_per_trial must be positive"),
        (["report", QUICKSTART, "--format", "docx"], "unknown format 'docx'"),
    ],
)
def test_mistakes_are_one_line_on_standard_error_and_exit_2(store, argv, told, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and "Traceback" not in err and not out


def break_json(root: Path) -> None:
    (root / "annotations" / "instances_train.json").write_text("{")


def edit_annotation(**changes) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        content["annotations"][0].update(changes)
        path.write_text(json.dumps(content))

    return edit


BAD_DATA = {
    "annotations missing": (lambda root: (root / "annotations" / "instances_val.json").unlink(), "instances_val.json"),
    "json broken": (break_json, "broken JSON"),
    "image missing": (lambda root: (root / "train" / "10.jpg").unlink(), "is missing in"),
    "jpeg truncated": (
        lambda root: (root / "train" / "10.jpg").write_bytes((root / "train" / "10.jpg").read_bytes()[:-300]),
        "truncated",
    ),
    "box outside": (edit_annotation(bbox=[500, 500, 9, 9]), "outside the image"),
    "box without area": (edit_annotation(bbox=[3, 3, 0, 9]), "has no area"),
    "category unknown": (edit_annotation(category_id=4), "category 4"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_one_line_and_exit_2_before_anything_is_trained(name, store, tmp_path, tracking_store, capsys):
    spoil, told = BAD_DATA[name]
    root = write_folder(tmp_path / "data")
    spoil(root)
    assert main(["run", QUICKSTART, "--data", str(root), "--executor", "local"]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not any(store.read(trial) for trial in store.trials())


@pytest.mark.parametrize("command", [["run", QUICKSTART, "--executor", "local"], ["report", QUICKSTART]])
def test_an_unreachable_tracking_store_is_one_line_and_exit_2(command, store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main([*command, "--preset", "digits_fast"]) == 2
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9" in err and err.count("\n") == 1 and err.startswith("error: ")


def test_each_of_several_mistakes_has_its_line(store, capsys):
    assert main(["plan", QUICKSTART, "--set", "a", "--set", "train.epochs=0", "--preset", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)


def test_no_traceback_in_a_real_process(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("rows: [{label: a}]\nrows: [{label: b}]")
    done = codetr("plan", str(file))
    assert done.returncode == 2
    assert done.stderr == f"error: {file}:2: duplicate key 'rows' (first on line 1); remove one\n"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m harness plan {QUICKSTART} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_ctrl_c_in_a_real_process_is_clean(tmp_path):
    code = (
        "import signal, sys, time; from harness import commands; from harness.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it
        "def wait(args):\n    print('ready', flush=True)\n    time.sleep(30)\n"
        "commands.plan = wait; sys.exit(main(['plan', 'x']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err
