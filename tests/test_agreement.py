"""Which trials were made by the same code: by its core, and by the parts that both name."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.compare import differences as compared
from harness.errors import UserError
from harness.report import write_report
from harness.report.frames import trials_frame
from harness.report.ground import check_ground
from harness.store.agreement import agree, code_groups, differences, packed, short, unpacked, words
from harness.store.closure import ROOT, code_of, read_source
from harness.tracking.views import code_words
from tests.support.report_grid import make_grid, make_record

FILES = {  # a small repository of this one's kind
    "model/__init__.py": "",
    "model/config.py": "width = 1\n",
    "model/detector.py": "from model.boxes import area\nfrom model.heads import HEADS\nimport model.heads.base as b\n",
    "model/boxes.py": "import torch\nfrom model import config\n",
    "model/unused.py": "",
    "model/heads/__init__.py": (
        "from model.heads import configs, gfl\n"
        'HEADS: dict = Lazy("head", {"atss": "model.heads.atss:ATSS", "gfl": "model.heads.gfl:GFL",'
        ' "own": "model.heads.own:Own"})\n'
    ),
    "model/heads/configs.py": "top_k = 9\n",
    "model/heads/base.py": "class Head: ...\n",
    "model/heads/dense.py": "from .base import Head\nfrom . import centres\n",
    "model/heads/centres.py": "",
    "model/heads/atss.py": "from model.heads import configs, dense\nclass ATSS: ...\n",
    "model/heads/gfl.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from model.heads.atss import ATSS\n"
        "class GFL:\n    def loss(self):\n        try:\n            from model.heads.dense import anchors\n"
        "        except ImportError:\n            pass\n"
    ),
    "model/heads/own.py": "class Own:\n    class Config:\n        top_k = 9\n",
    "csrc/nms.cpp": "// suppress\n",
    "harness/data/__init__.py": "",
    "harness/data/coco.py": "def scan():\n    from model.boxes import area\n",
    "harness/commands.py": "",
    "README.md": "",
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def house(tmp_path):
    for name, text in FILES.items():
        write(tmp_path / name, text)
    yield tmp_path
    read_source.cache_clear()


def code(root: Path, *parts: str) -> dict:
    read_source.cache_clear()
    return code_of(parts, root)


def change(path: Path, line: str = "# changed\n") -> None:
    path.write_text(path.read_text() + line)


# ---- what a trial's code is


def test_core_and_closures(house):
    made = code(house, "heads.gfl", "heads.atss", "heads.own")
    assert [*made["core"]] == [
        *("csrc/nms.cpp", "harness/data/__init__.py", "harness/data/coco.py"),
        *("model/__init__.py", "model/boxes.py", "model/detector.py", "model/heads/base.py"),
    ]
    shared = ["model/heads/centres.py", "model/heads/dense.py"]
    assert {part: [*files] for part, files in made["parts"].items()} == {
        "heads.atss": ["model/heads/atss.py", *shared],
        "heads.gfl": [shared[0], shared[1], "model/heads/gfl.py"],  # not atss.py, which a type checker alone reads
        "heads.own": ["model/heads/own.py"],
    }
    assert {len(digest) for digest in made["core"].values()} == {12}


def test_a_part_that_the_core_imports_is_in_the_core(house):
    change(house / "model" / "detector.py", "from model.heads.own import Own\n")
    made = code(house, "heads.own")
    assert "model/heads/own.py" in made["core"] and made["parts"] == {"heads.own": {}}
    assert agree(made, code(house, "heads.own"))


def test_only_a_room_s_own_dict_of_parts_is_left_out(house):
    """Any other text with a colon in a dict decides what it decides."""
    write(house / "harness" / "data" / "__init__.py", 'MODES = {"fast": "low:high"}\n')
    write(house / "model" / "heads" / "own" / "__init__.py", 'MODES = {"fast": "low:high"}\nclass Own: ...\n')
    write(house / "model" / "detector.py", FILES["model/detector.py"] + "import model.zoo\n")
    write(house / "model" / "zoo" / "__init__.py", 'TIMES = {"heads": "twelve:thirty"}\n')
    before = code(house, "heads.own")
    assert {"harness/data/__init__.py", "model/zoo/__init__.py"} <= before["core"].keys()
    assert [*before["parts"]["heads.own"]] == ["model/heads/own/__init__.py"]
    change(house / "model" / "heads" / "own" / "__init__.py")
    assert not agree(before, code(house, "heads.own"))


def test_a_part_that_lies_elsewhere_goes_by_its_own_file(house, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "my_parts.py", "class Mine: ...\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    text = FILES["model/heads/__init__.py"].replace("{", '{"mine": "my_parts:Mine", "lost": "nowhere:Lost", ')
    write(house / "model" / "heads" / "__init__.py", text)
    before = code(house, "heads.mine", "heads.lost")
    assert [*before["parts"]["heads.mine"]] == ["my_parts"] and before["parts"]["heads.lost"] is None
    assert agree(code(house, "heads.mine"), code(house, "heads.mine"))
    change(elsewhere / "my_parts.py")
    assert not agree(code(house, "heads.mine"), {**before, "parts": {"heads.mine": before["parts"]["heads.mine"]}})


def test_a_package_takes_precedence_over_a_module_of_its_name(house):
    write(house / "model" / "boxes" / "__init__.py", "")
    core = code(house)["core"]
    assert "model/boxes/__init__.py" in core and "model/boxes.py" not in core


def test_many_records_of_many_codes_are_grouped_in_a_moment():
    """Few codes are distinct; who compares each record with each waits for minutes."""
    core = {f"model/{number}.py": "0" * 12 for number in range(60)}
    records = [
        {"provenance": {"code": {"core": {**core, "model/detector.py": f"{number % 3}" * 12}, "parts": {}}}}
        for number in range(3000)
    ]
    started = time.process_time()
    groups = code_groups(records)
    assert [len(group.records) for group in groups] == [1000] * 3
    assert time.process_time() - started < 3


def test_this_repository_is_read_without_torch():
    script = (
        "import sys; from harness.store.closure import code_of; made = code_of(['heads.atss', 'heads.mask_rcnn'])\n"
        "assert not {'torch', 'numpy', 'model'} & set(sys.modules), sorted(sys.modules)\n"
        "print(*made['core'], *made['parts']['heads.atss'])"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {"model/detector.py", "model/ops.py", "model/heads/base.py", "csrc/nms.cpp"} < set(told.split())
    assert {"model/heads/atss.py", "model/heads/dense.py"} < set(told.split())
    assert "config" not in told and "model/heads/__init__.py" not in told


# ---- agreement

NOT_CODE = ["README.md", "harness/commands.py", "model/unused.py", "model/config.py", "model/heads/configs.py"]


@pytest.mark.parametrize("name", NOT_CODE)
def test_words_commands_and_settings_change_nothing(house, name):
    before = code(house, "heads.atss")
    change(house / name, "width: int = 2\n")
    assert code(house, "heads.atss") == before and agree(before, code(house, "heads.atss"))


def test_a_new_line_in_a_dict_changes_nothing(house):
    before = code(house, "heads.atss")
    path = house / "model" / "heads" / "__init__.py"
    path.write_text(path.read_text().replace('"own":', '"new": "model.heads.new:New", "own":'))
    write(house / "model" / "heads" / "new.py", "class New: ...\n")
    assert code(house, "heads.atss") == before
    assert agree(before, code(house, "heads.atss", "heads.new"))


@pytest.mark.parametrize("name", ["model/detector.py", "model/boxes.py", "csrc/nms.cpp", "harness/data/coco.py"])
def test_a_changed_file_of_the_core_parts_all_trials(house, name):
    before = code(house, "heads.atss"), code(house)
    change(house / name)
    after = code(house, "heads.atss"), code(house)
    assert not any(agree(one, other) for one in before for other in after)
    assert words(differences(before[0], after[0])) == name


def test_a_renamed_file_of_the_core_parts_all_trials(house):
    before = code(house)
    for name in ("model/detector.py", "harness/data/coco.py"):
        text = (house / name).read_text()
        (house / name).write_text(text.replace("model.boxes", "model.areas"))
    renamed = code(house)  # of the two files alone
    (house / "model" / "boxes.py").rename(house / "model" / "areas.py")
    found = differences(renamed, code(house))
    assert words(found) == "model/areas.py" and not agree(before, code(house))
    (house / "csrc" / "nms.cpp").rename(house / "csrc" / "suppress.cpp")
    assert "csrc/nms.cpp, csrc/suppress.cpp" in words(differences(before, code(house)))


def test_a_part_that_one_trial_names_alone_is_no_matter(house):
    assert agree(code(house, "heads.atss"), code(house, "heads.own"))
    before = code(house, "heads.atss")
    change(house / "model" / "heads" / "own.py")
    assert agree(before, code(house, "heads.own")) and agree(before, code(house, "heads.own", "heads.atss"))


@pytest.mark.parametrize("part", ["heads.atss", "heads.gfl"])
def test_a_file_that_both_use_is_one(house, part):
    before = code(house, "heads.atss")
    change(house / "model" / "heads" / "dense.py")
    found = differences(before, code(house, part, "heads.own"))
    assert words(found) == "model/heads/dense.py (heads.atss)"


def test_a_file_that_is_no_python_differs_from_what_it_was(house):
    before = code(house, "heads.own")
    change(house / "model" / "heads" / "own.py", "def (")
    assert words(differences(before, code(house, "heads.own"))) == "model/heads/own.py (heads.own)"
    (house / "model" / "heads" / "own.py").write_bytes(b"\0\xff")
    assert not agree(before, code(house, "heads.own"))


def test_a_moved_or_split_part_parts_the_trials_that_name_it(house):
    before = code(house, "heads.atss"), code(house, "heads.own")
    listed, path = house / "model" / "heads" / "__init__.py", house / "model" / "heads" / "atss.py"
    path.write_text("from model.heads import dense, core_of_atss\n")
    write(house / "model" / "heads" / "core_of_atss.py", "class ATSS: ...\n")
    assert not agree(before[0], code(house, "heads.atss")) and agree(before[1], code(house, "heads.atss"))
    (house / "model" / "heads" / "core_of_atss.py").unlink()
    path.write_text(FILES["model/heads/atss.py"])
    path.rename(house / "model" / "heads" / "moved.py")
    listed.write_text(listed.read_text().replace("heads.atss:", "heads.moved:"))
    found = differences(before[0], code(house, "heads.atss"))
    assert words(found) == "model/heads/atss.py (heads.atss), model/heads/moved.py (heads.atss)"
    assert agree(before[1], code(house, "heads.atss"))


def test_a_part_that_the_source_does_not_list_agrees_with_nothing(house):
    made = code(house, "heads.late")
    assert made["parts"] == {"heads.late": None}
    assert not agree(made, made) and words(differences(made, made)) == "heads.late"
    assert agree(made, code(house))


OLD, OTHER = "c0de12345678", "beef00000000"
CORE = {"core": {"model/a.py": "1" * 12}, "parts": {}}


def test_older_records_agree_with_their_like_alone():
    assert agree(OLD, OLD) and not agree(OLD, OTHER)
    assert not agree(OLD, CORE) and not agree(CORE, OLD) and agree(CORE, CORE)


@pytest.mark.parametrize(
    "empty", [None, "", {}, {"core": {}}, {"core": {}, "parts": {"heads.a": {"b.py": "1"}}}, 3, []]
)
def test_nothing_agrees_by_having_nothing_in_common(empty):
    assert not agree(empty, empty) and not agree(empty, CORE) and not agree(CORE, empty)
    assert short(empty) in ("", str(empty))
    code_groups([{"provenance": {"code": empty}}, {"provenance": {"code": CORE}}])  # does not fall


def test_a_code_has_a_short_name_and_fits_a_tag(house):
    made, plain = code(house, "heads.atss"), code(house)
    assert re.fullmatch("[0-9a-f]{12}", short(made)) and short(made) == short(plain) and short(OLD) == OLD
    change(house / "model" / "boxes.py")
    assert short(code(house)) != short(plain)
    every = code_of(
        [f"heads.{name}" for name in ("atss", "faster_rcnn", "mask_rcnn", "retinanet", "fcos", "paa", "gfl")]
    )
    assert unpacked(packed(every)) == every and len(packed(every)) < 3000
    assert [unpacked(packed(code)) for code in (OLD, None)] == [OLD, None] and unpacked("deflate;x") == "deflate;x"


# ---- tables


def digests(**parts: str) -> dict:
    """A code with one file in the core and one in each part."""
    return {**CORE, "parts": {f"heads.{name}": {f"model/heads/{name}.py": digest} for name, digest in parts.items()}}


def table(*codes: object) -> tuple:
    records = [make_record(f"{row}-0", 30.0 + row) for row in range(len(codes))]
    for record, made in zip(records, codes, strict=True):
        record["provenance"] = {**record["provenance"], "code": made}
    return make_grid({f"row {row}": {} for row in range(len(codes))}, seeds=(0,)), records


def test_a_table_of_different_heads_stands_on_one_ground(tmp_path):
    grid, records = table(digests(), digests(atss="1"), digests(gfl="2"), digests(atss="1", gfl="2"))
    check_ground([grid], records)
    text = write_report([grid], tmp_path, ("md",), records=records).text
    assert "WARNING" not in text and f"code {short(CORE)}" in " ".join(text.split())
    assert set(trials_frame(grid, records)["code"]) == {short(CORE)}
    assert code_words(records) == f"All by code {short(CORE)} of commit a1b2c3d4e5."


def test_agreement_is_not_transitive_so_all_pairs_count(tmp_path):
    grid, records = table(digests(atss="1"), digests(), digests(atss="2"))
    assert all(agree(records[1]["provenance"]["code"], record["provenance"]["code"]) for record in records)
    with pytest.raises(UserError) as caught:
        check_ground([grid], records)
    name = f"code {short(CORE)} (commit a1b2c3d4e5"
    assert str(caught.value).splitlines()[1:3] == [
        f"  {name}): 2 trials: row 0 (seed 0), row 1 (seed 0)",
        f"  {name}; differs in model/heads/atss.py (heads.atss)): 1 trial: row 2 (seed 0)",
    ]
    assert "codetr rm 2-0, then run" in str(caught.value)
    report = write_report([grid], tmp_path, ("md",), records=records, allow_mixed=True)
    told = f"(2 trials), code {short(CORE)} (1 trial; differs in model/heads/atss.py (heads.atss))"
    assert told in " ".join(report.text.split())
    assert "1 by code" in code_words(records) and "(differs in model/heads/atss.py (heads.atss))" in code_words(records)


def test_a_few_of_many_differences_are_named():
    many = {"core": {f"model/{letter}.py": "0" for letter in "abcdef"}, "parts": {}}
    _, records = table(CORE, CORE, many)
    first, second = code_groups(records)
    assert first.differing == "" and second.differing == "model/a.py, model/b.py, model/c.py and 3 more"


def test_old_and_new_records_are_two_grounds():
    grid, records = table(OLD, OLD, CORE)
    with pytest.raises(UserError, match=f"code {OLD} .commit a1b2c3d4e5.: 2 trials.*\n.*code {short(CORE)} "):
        check_ground([grid], records)
    check_ground([grid], records[:2])


def test_diff_names_the_files():
    _, (one, other) = table(digests(atss="1", gfl="3"), {**digests(atss="2", own="4"), "core": CORE["core"]})
    assert compared(one, other)[0] == ("provenance.code.model/heads/atss.py", "1", "2")
    _, (one, other) = table(OLD, CORE)
    assert ("provenance.code", OLD, short(CORE)) in compared(one, other)
    assert not [row for row in compared(one, one) if "code" in row[0]]
