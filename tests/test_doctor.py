"""The doctor's findings: exit code and lines a person acts on."""

from __future__ import annotations

from functools import cache

import pytest

from harness.__main__ import main
from model import kernels, ops


@pytest.fixture
def not_looked_for(monkeypatch):
    """A process that has not looked for the kernels yet."""
    monkeypatch.setattr(kernels, "library", cache(kernels.library.__wrapped__))


@pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler: only the reference runs here")
def test_all_is_well(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("equals the reference") == 3 and "FAULT" not in shown
    assert "operators   compiled (" in shown and str(kernels.cache_folder()) in shown


@pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler: only the reference runs here")
def test_a_wrong_operator_is_a_fault(capsys, monkeypatch):
    right = ops.nms
    monkeypatch.setattr(ops, "nms", lambda *given: right(*given).flip(0))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("equals the reference") == 2 and "NMS         FAULT: differs from the reference" in shown


def test_no_compiler_is_a_fault_unless_the_reference_is_asked_for(capsys, monkeypatch, not_looked_for):
    monkeypatch.setenv("CXX", "not-there")
    assert main(["doctor"]) == 1
    assert "not-there, which CXX names, is not on the PATH" in capsys.readouterr().out
    monkeypatch.setenv("CODETR_OPS", "reference")
    kernels.library.cache_clear()
    assert main(["doctor"]) == 0
    assert "operators   reference (CODETR_OPS is reference)" in capsys.readouterr().out


def test_a_misspelt_choice_is_the_users_mistake(capsys, monkeypatch, not_looked_for):
    monkeypatch.setenv("CODETR_OPS", "fast")
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: CODETR_OPS is 'fast': it must be auto, compiled or reference\n"
