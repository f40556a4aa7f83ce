"""Parameters of official implementations under our names, one file for each family of names.

`convert` turns the state dict of a released model into one that `Detector.load_state_dict` takes.
"""

from __future__ import annotations

from model.official.co_detr import convert

__all__ = ["convert"]
