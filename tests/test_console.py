"""Texts are shown as they are, as far as the output can; a closed one is no error; files are UTF-8 in any locale."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.console import table

ROOT = Path(__file__).parents[1]
CODETR = [sys.executable, str(ROOT / "codetr_harness.py")]
NOT_UTF8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "größe ↑.yaml"
    found.write_text('title: "Größe ± ↑ 日本"\nrows:\n  - {label: "größer ↑"}\n', encoding="utf-8")
    return found


def plan(file: Path, redirected: str = "", *more: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`codetr plan` of the file, by a shell that redirects its output."""
    command = [*CODETR, "plan", str(file), "--preset", "digits_fast", *more]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    script = f'exec "$@" {redirected}'
    return subprocess.run(["bash", "-c", script, "-", *command], env=env | environment, capture_output=True)


@pytest.mark.parametrize(
    ("environment", "title"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "Größe ± ? ??".encode("latin-1")),
        ({"PYTHONIOENCODING": "ascii"}, b"Gr??e ? ? ??"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"Gr??e ? ? ??"),
        (NOT_UTF8, b"Gr??e ? ? ??"),
        ({"LC_ALL": "en_US.ISO-8859-1"}, b"Gr"),  # where there is no such locale, Python takes another
        ({"LANG": "C"}, "Größe ± ↑ 日本".encode()),  # Python's own rule: the terminal knows UTF-8 all the same
        ({"LC_ALL": "POSIX"}, "Größe ± ↑ 日本".encode()),
    ],
    ids=str,
)
def test_what_the_output_cannot_show_is_replaced(file: Path, environment: dict[str, str], title: bytes) -> None:
    done = plan(file, **environment)
    told = [line for line in done.stderr.splitlines() if b"setlocale" not in line]  # of the shell
    assert (done.returncode, told) == (0, []) and title in done.stdout


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, NOT_UTF8], ids=["output", "locale"])
def test_mistakes_are_told_whatever_they_quote(file: Path, environment: dict[str, str]) -> None:
    done = plan(file, "", "--set", "mödel.x=1", **environment)
    assert done.returncode == 2 and done.stderr.startswith(b"error: --set m") and b"Traceback" not in done.stderr


def test_names_that_are_no_text_are_shown(file: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(file.parent) + b"/caf\xe9.yaml"))
    odd.write_bytes(file.read_bytes())
    assert plan(odd).returncode == 0
    odd.unlink()
    done = plan(odd)
    assert done.returncode == 2 and b"caf?.yaml: no such ablation file" in done.stderr


ODD = [r"a \[/b] c", "[x]set[/x]", "[/]", "1:100:1", ":fire:", "[link=x]y", "[bold]"]


@pytest.mark.parametrize("text", ODD)
def test_a_table_shows_every_text_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    table(text, {text: False, "wrapped": True}, [[text, text]])
    title, headings, _, row = (line.strip() for line in capsys.readouterr().out.splitlines() if line.strip())
    assert title == text and headings.startswith(f"{text}  ") and row.startswith(f"{text}  ") and row.endswith(text)


def test_labels_titles_and_paths_are_no_markup(file: Path) -> None:
    file.write_text("title: ':fire: [/t]'\nrows:\n  - {label: 'a \\[/b] 1:100:1'}\n", encoding="utf-8")
    done = plan(file, "", "--data", "/tmp/x/[/x]")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b":fire: [/t] (" in done.stdout and rb"a \[/b] 1:100:1" in done.stdout


@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -c 1 > /dev/null"])
def test_closed_output_is_no_error(file: Path, redirected: str) -> None:
    if redirected.startswith("|"):
        redirected = f"> >({redirected[1:]})"
    done = plan(file, redirected)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_a_closed_output_is_not_the_next_opened_file(tmp_path: Path) -> None:
    code = "from harness.system.console import begin_process; begin_process(); "
    code += f"print(open({str(tmp_path / 'a')!r}, 'wb').fileno())"
    script = 'exec "$@" >&- <&-'
    done = subprocess.run(["bash", "-c", script, "-", sys.executable, "-c", f"{code}; print('text')"], cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "a").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_the_output_is_one_line(file: Path) -> None:
    done = plan(file, "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written (No space left on device)\n"


def test_progress_goes_on_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.schedule.progress import print_line

    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        print_line("epoch 1/2")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # for what is buffered


def test_text_that_is_no_unicode_is_written_as_escapes(tmp_path: Path) -> None:
    from harness.files import write_atomic

    write_atomic(tmp_path / "a", "caf\udce9 ß")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "caf\\udce9 ß"


FOLDERS = [ROOT / name for name in ("harness", "model", "benchmarks")]
SOURCES = [ROOT / "codetr_harness.py", *(path for folder in FOLDERS for path in folder.rglob("*.py"))]


def test_every_text_file_is_opened_as_utf8() -> None:
    without = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _takes_the_locales(node)
    ]
    assert not without, "name the encoding"


def _takes_the_locales(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named or ast.unparse(call.func) in ("Image.open", "os.open", "zipfile.ZipFile.open"):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name in ("run", "Popen", "check_output"):
        return "text" in named or "universal_newlines" in named
    if name in ("open", "fdopen"):
        texts = [arg.value for arg in [*call.args, *named.values()] if isinstance(arg, ast.Constant)]
        modes = [text for text in texts if isinstance(text, str) and 0 < len(text) <= 3 and set(text) <= set("rwaxbt+")]
        of_text = ast.unparse(call.func) in ("open", "os.fdopen") or bool(modes)  # `archive.open(name)` gives bytes
        return of_text and not any("b" in mode for mode in modes) and ast.unparse(call.func) != "archive.open"
    return False
