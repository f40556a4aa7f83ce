"""The C++ compiler of this machine."""

from __future__ import annotations

import shutil

import pytest

from model import kernels

COMPILER = next(filter(None, map(shutil.which, kernels.COMPILERS)), None)


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on the PATH")
