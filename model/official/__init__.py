"""Weights of official implementations under our names, one file for each family of names.

`translate` finds the family of a state dict by itself, turns it into one that `Detector.load_state_dict` takes, and
says what became of each name.
"""

from __future__ import annotations

from model.official.translation import Translation, translate

__all__ = ["Translation", "translate"]
