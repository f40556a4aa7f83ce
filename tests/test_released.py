"""`codetr import-weights` and `codetr evaluate`: a released file becomes ours and is measured, or nothing is there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.__main__ import main
from harness.report.released import RELEASED, Protocol, released
from harness.revisit import beside
from harness.revisit.configured import Asked, of_presets
from harness.spec.spec import SHIPPED
from model.config import DetectorConfig
from model.detector import Detector
from tests.support.official_names import as_co_detr

NAME = "co_dino_5scale_r50_1x_coco"  # of a preset beside the working folder, at the size of tests
ORDER, NUM_LAYERS, DIGITS = ("faster_rcnn", "atss"), 2, 10
FEW = ("--set", "data.digits.num_train=4", "--set", "data.digits.num_val=4")
SMALL = ("--model", NAME, "--preset", "digits_fast", *FEW)

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    preset = yaml.safe_load((SHIPPED / "presets/models/dino_5scale.yaml").read_text(encoding="utf-8"))
    preset["model"] |= {"heads": ["atss", "faster_rcnn"], "postprocess": "soft_nms"}
    Path("presets/models").mkdir(parents=True)
    Path(f"presets/models/{NAME}.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")


def config() -> DetectorConfig:
    return of_presets(Asked(NAME, "digits_fast")).model


def trained() -> State:
    """Away from initial values, where attention is uniform and every box the reference itself."""
    torch.manual_seed(0)
    equal = {f"positive_queries.{name}.head_embedding" for name in ORDER}  # official: one number
    state = Detector(config(), DIGITS).state_dict()
    return {
        name: value + 0.05 * (torch.randn(1) if name in equal else torch.randn_like(value))
        for name, value in state.items()
    }


def save_official(state: State, path: str = "official.pth", edit: Callable[[State], object] = lambda own: None) -> None:
    official = as_co_detr(state, ORDER, NUM_LAYERS)
    edit(official)
    torch.save({"meta": {"epoch": 12}, "state_dict": official}, path)


def test_what_was_imported_needs_no_name_and_detects_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    state = trained()
    save_official(state)
    torch.save(state, "native.pth")
    assert main(["import-weights", "official.pth", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "the names of Co-DINO, under 'state_dict'" in out and "wrote official.safetensors" in out
    own = load_file("official.safetensors")
    assert own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)
    with safe_open("official.safetensors", framework="np") as file:
        said = json.loads(file.metadata()["codetr"])
    assert (said["model"], said["source"], said["num_classes"], len(said["sha256"])) == (NAME, "official.pth", 10, 64)
    assert said["config"]["model"]["postprocess"]["name"] == "soft_nms"

    assert main(["evaluate", "official.safetensors"]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "published (paper, Table 4) 52.1 69.4 57.1 35.4 55.4 65.9" in lines
    ours, difference = (next(line for line in lines if line.startswith(own)) for own in ("ours ", "difference "))
    assert abs(float(difference.split()[1]) - (float(ours.split()[1]) - 52.1)) < 0.06
    assert any(line.startswith("ours, faster_rcnn ") for line in lines)
    assert any(line.startswith("ours, atss ") for line in lines)
    assert "published: soft-NMS at 0.8, 300 detections, 1333 x 800, fp32 or TF32 (not told)" in lines
    assert "ours: soft-NMS at 0.8, 100 detections, 144 x 96, fp32" in lines and any("differ" in line for line in lines)

    settings = [*SMALL[2:], "--set", f"model.preset={NAME}", "--metrics", "evaluation"]
    assert main(["analyse", "native.pth", *settings]) == 0
    found, expected = (Path(folder, "detections.json") for folder in ("evaluation/official", "analysis/native"))
    assert found.read_bytes() == expected.read_bytes() and len(json.loads(found.read_bytes())) > 8

    # settings of the command line lie on top of what the file says
    capsys.readouterr()
    more = ("--branches", "decoder", "--max-detections", "150", "--out", "there", "--set", "model.postprocess=top_k")
    assert main(["evaluate", "official.safetensors", *more]) == 0
    out = capsys.readouterr().out
    assert "ours: no NMS, 150 detections" in out and "atss" not in out
    assert "all columns count 150 detections of an image; officially AP 100 of each class" in out
    metrics = json.loads(Path("there/evaluation.json").read_bytes())["metrics"]
    assert "AP50@150" in metrics and "AP@150" in metrics

    assert main(["analyse", "official.safetensors", "--metrics", "queries", "--images", "2"]) == 0  # likewise


def test_an_official_file_is_evaluated_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    save_official(trained())
    heads = ("--set", "model.heads=[]", "--set", "model.groups=[]")
    assert main(["evaluate", "official.pth", *SMALL, *heads, "--set", "model.postprocess=top_k"]) == 0
    out = capsys.readouterr().out
    assert "a head that the configuration does not have" in out and "published (paper, Table 4)" in out
    assert "ours, atss" not in out and Path("evaluation/official/keys.json").is_file()


# ---- what does not fit


def renamed(name: str) -> Callable[[State], object]:
    return lambda own: own.update({f"{name}x": own.pop(name)})


def missing(name: str) -> Callable[[State], object]:
    return lambda own: own.pop(name)


def reshaped(name: str) -> Callable[[State], object]:
    return lambda own: own.update({name: torch.zeros(*own[name].shape, 2)})


@pytest.mark.parametrize("change", [renamed, missing, reshaped])
def test_one_changed_key_is_refused_in_one_line(
    change: Callable[[str], Callable[[State], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    state = trained()
    official = as_co_detr(state, ORDER, NUM_LAYERS)
    chosen = random.Random(0).sample(sorted(official), 5)
    for name in chosen:
        save_official(state, edit=change(name))
        assert main(["import-weights", "official.pth", *SMALL]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("error: official.pth: the weights ") and "--model" in error, name
    assert not Path("official.safetensors").exists()


NORM = "rpn_head.rpn_cls.bias"  # official for
OBJECTNESS = "heads.faster_rcnn.stages.proposals.objectness.bias"


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        *(
            (command, lambda own: own.fill_(torch.nan), f"no finite numbers in {OBJECTNESS}")
            for command in ("import-weights", "evaluate", "analyse")
        ),
        (
            "import-weights",
            lambda own: torch.full_like(own, 1e300, dtype=torch.float64),
            f"{OBJECTNESS} (beyond 32 bits)",
        ),
        ("import-weights", lambda own: own.to(torch.int64), f"of 16 to 64 bits in {OBJECTNESS} (int64)"),
        ("evaluate", lambda own: own.to(torch.complex64), f"{OBJECTNESS} (complex64)"),
        ("import-weights", lambda own: own.to(torch.float8_e4m3fn), f"{OBJECTNESS} (float8_e4m3fn)"),
        ("import-weights", lambda own: own.to_sparse(), f"cannot be read as weights: its {NORM} are sparse"),
        ("evaluate", lambda own: own.to("meta"), f"its {NORM} are sparse, quantised or without numbers"),
    ],
    ids=["nan", "nan, evaluated", "nan, analysed", "beyond fp32", "whole", "complex", "float8", "sparse", "meta"],
)
def test_numbers_that_are_no_weights_are_refused(
    command: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_official(trained(), edit=lambda own: own.update({NORM: change(own[NORM])}))
    model = ("--set", f"model.preset={NAME}", *SMALL[2:]) if command == "analyse" else SMALL
    assert main([command, "official.pth", *model]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: official.pth ") and told in error
    assert not Path("official.safetensors").exists() and not Path("evaluation").exists()


@pytest.mark.parametrize("command", ["evaluate", "analyse"])
def test_finite_weights_of_no_finite_prediction_are_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: 1e30 * value if value.is_floating_point() else value for name, value in trained().items()}
    torch.save(state, "own.pth")
    model = ("--set", f"model.preset={NAME}", *SMALL[2:]) if command == "analyse" else SMALL
    assert main([command, "own.pth", *model, *(("--metrics", "evaluation") if command == "analyse" else ())]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: own.pth: its weights are finite, and what it predicts"), error


def test_a_beginning_of_no_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    save_official(trained())
    for name, hint in (("rpn_hed", "; did you mean 'rpn_head'?"), ("zzz", "; they begin with "), ("", "; they begin")):
        assert main(["import-weights", "official.pth", *SMALL, "--drop", name]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"official.pth: drop: no name begins with '{name}'{hint}" in error
    assert not Path("official.safetensors").exists()


def test_masks_that_are_not_built_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    more = {"mask_head.stages.0.a": torch.zeros(1), "mask_iou_head.fcs.0.bias": torch.zeros(1)}
    save_official(trained(), edit=lambda own: own.update(more))
    assert main(["import-weights", "official.pth", *SMALL]) == 0
    assert "left out 2: the masks of the decoder's boxes, a head that is not built (2)" in capsys.readouterr().out


def test_nothing_that_is_there_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    state = trained()
    save_official(state)

    def refused(*arguments: str) -> str:
        assert main(["import-weights", "official.pth", *SMALL, *arguments]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        return error

    Path("mine.safetensors").write_text("mine", encoding="utf-8")
    assert "mine.safetensors is there already, and no imported weights" in refused("--out", "mine.safetensors")
    assert Path("mine.safetensors").read_text(encoding="utf-8") == "mine"
    assert "--out presets is a folder" not in refused("--out", "presets") and Path("presets/models").is_dir()
    Path("folder.safetensors").mkdir()
    assert "folder.safetensors is a folder; name the file in it" in refused("--out", "folder.safetensors")
    assert "must end in .safetensors" in refused("--out", "official.pth")

    assert main(["import-weights", "official.pth", *SMALL]) == 0
    before = Path("official.safetensors").read_bytes()
    assert main(["import-weights", "official.pth", *SMALL]) == 0  # the same again is no other
    assert Path("official.safetensors").read_bytes() == before
    save_official({name: value + 1 for name, value in state.items()})
    assert "official.safetensors is there already, of other weights" in refused()
    assert Path("official.safetensors").read_bytes() == before
    assert main(["import-weights", "official.pth", *SMALL, "--force"]) == 0
    assert Path("official.safetensors").read_bytes() != before
    before = Path("official.safetensors").read_bytes()
    assert main(["import-weights", "official.safetensors", *SMALL, "--force"]) == 2
    assert "official.safetensors is the file that is read" in capsys.readouterr().err
    assert Path("official.safetensors").read_bytes() == before
    assert not list(Path().glob(".*"))  # no remains


# ---- bad input


def half() -> None:
    save_official({"a": torch.zeros(1000)})
    content = Path("official.pth").read_bytes()
    Path("file.pth").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: None, "file.pth does not exist"),
        (lambda: Path("file.pth").mkdir(), "file.pth is a folder; name the file in it"),
        (lambda: Path("file.pth").write_text("<html>", encoding="utf-8"), "file.pth cannot be read as weights"),
        (lambda: torch.save([1, 2], "file.pth"), "file.pth cannot be read as weights: it holds no state dict"),
        (half, "file.pth cannot be read as weights: it is cut short"),
        (
            lambda: torch.save({"fc.weight": torch.zeros(2, 2)}, "file.pth"),
            "file.pth: no names of a detector that is known",
        ),
    ],
)
@pytest.mark.parametrize("command", ["import-weights", "evaluate"])
def test_a_file_that_is_none_is_told_in_one_line(
    command: str, make: Callable[[], object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    assert main([command, "file.pth", *SMALL]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error and not Path("file.safetensors").exists() and not Path("evaluation").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "w.pth does not say which detector it is of; give --model NAME; known: conditional_c5, "),
        (("--model", "dino_5scal"), "--model: unknown detector 'dino_5scal'; did you mean 'dino_5scale'?"),
        (("--model", "coco_r50_12f"), "did you mean 'coco_r50_12e'?"),
        (("--model", "co_dino_r50"), "did you mean 'co_dino_5scale_r50_1x_coco'?"),
        (("--model", "digits", "--preset", "digits_fast"), "--model digits names a preset of scale already"),
        (("--model", NAME, "--set", "model.num_querys=3"), "did you mean 'num_queries'?"),
        ((*SMALL, "--branches", "atts"), "--branches: unknown 'atts'; did you mean 'atss'?"),
        ((*SMALL, "--max-detections", "50"), "--max-detections: max_detections must be from 100"),
        ((*SMALL, "--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_of_the_command_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "nowhere" in arguments:
        save_official(trained(), "w.pth")
    else:
        torch.save({"a": torch.zeros(1)}, "w.pth")
    assert main(["evaluate", "w.pth", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error


def test_a_file_named_after_a_released_model_is_told_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("co_dino_5scale_r50_1x_coco", "co_dino_5scale_r50_1x", "co_dino_5scale_r50_1x_coco-7481f903"):
        torch.save({"a": torch.zeros(1)}, f"{stem}.pth")
        for command in ("evaluate", "import-weights"):
            assert main([command, f"{stem}.pth"]) == 2
            (error,) = capsys.readouterr().err.splitlines()
            assert error.endswith("; its name is that of --model co_dino_5scale_r50_1x_coco"), error


def test_where_nothing_can_be_written_is_told_without_a_temporary_name(capsys: pytest.CaptureFixture[str]) -> None:
    save_official(trained())
    Path("a.safetensors").write_text("", encoding="utf-8")
    for out, told in (
        ("a.safetensors/x.safetensors", "a.safetensors is a file, and no folder"),
        ("/proc/x.safetensors", "cannot be written (No such file or directory); name a folder that can be there"),
    ):
        assert main(["import-weights", "official.pth", *SMALL, "--out", out]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert told in error and ".tmp" not in error, error
    assert main(["evaluate", ""]) == 2
    assert "the name of the weights is empty" in capsys.readouterr().err


def test_what_a_file_says_of_itself_must_be_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", '{"schema": 9}', '{"schema": 1}'):
        save_file({"a": torch.zeros(1)}, "w.safetensors", {"codetr": text})
        assert main(["evaluate", "w.safetensors"]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert "w.safetensors: its description cannot be used" in error and "give --model" in error


def test_half_of_an_imported_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    save_official(trained())
    assert main(["import-weights", "official.pth", *SMALL]) == 0
    content = Path("official.safetensors").read_bytes()
    Path("half.safetensors").write_bytes(content[: len(content) // 2])
    assert main(["evaluate", "half.safetensors"]) == 2
    assert "half.safetensors cannot be read as weights: it is cut short" in capsys.readouterr().err


# ---- published numbers


def test_published_numbers_are_those_of_the_ablation_file() -> None:
    tree = yaml.safe_load((SHIPPED / "table04_comparison.yaml").read_text(encoding="utf-8"))
    paper = [row["published"]["coco_r50_12e"] for row in tree["rows"]]
    ours = [own.metrics for own in RELEASED.values() if own.source == "paper, Table 4"]
    assert len(ours) == 7 and all(own in paper for own in ours)
    assert released("co_deformable_detr_r50_1x_coco") is released("co_deformable_detr_r50_1x")
    assert released("dino_5scale") is None


def test_numbers_stand_under_the_limit_that_the_official_evaluator_has() -> None:
    metrics = {"AP": 50.0, "AP50": 70.0, "AP50@300": 70.5, "AP75": 55.0, "APS": None, "atss/AP": 48.0, "APr": 3.0}
    published = released("co_dino_5scale_r50_1x")
    assert beside.headings(metrics, published) == ["AP", "AP50", "AP75", "APS", "APM", "APL", "APr"]
    table = beside.rows(metrics, ("decoder", "atss"), 300, published)
    assert table == [
        ["published (paper, Table 4)", "52.1", "69.4", "57.1", "35.4", "55.4", "65.9", "-"],
        ["ours", "50.0", "70.5", "55.0", "-", "-", "-", "3.0"],
        ["difference", "-2.1", "+1.1", "-2.1", "-", "-", "-", "-"],
        ["ours, atss", "48.0", "-", "-", "-", "-", "-", "-"],
    ]
    assert [row[0] for row in beside.rows(metrics, ("atss",), 100, published)] == [table[0][0], "ours, atss"]
    ours = Protocol("soft-NMS at 0.8", 300, "1333 x 800", "fp32")
    assert not any("differ" in line for line in beside.protocol_lines(ours, published, "x"))
    assert "no published row is known: no model is named" in beside.protocol_lines(ours, None, "")
