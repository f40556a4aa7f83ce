"""Errors meant for a person: one line that says what, where and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a file, a path or an option. The command line prints it without a traceback and exits 2."""


class RankLost(RuntimeError):
    """A process of a trial was killed or crashed; started again, the trial continues from its checkpoint."""


class OutOfMemory(RuntimeError):
    """The trial does not fit; the one line says where, by how much, and what would make it fit."""


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or not a number; the trial stops and names the terms, the step and the images."""
