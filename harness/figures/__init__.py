"""What the figures look like: pure functions that take labelled tables, arrays and images, and return a Figure.

`style.py` holds what all share and writes the files, `series.py` turns seeds into means and bands; then a file per
kind: `epochs.py` (paper Figures 1 and 5), `discriminability.py` (2), `maps.py` (3), `conflict.py` (6), `queries.py`
(7), `matrices.py` (8 and 9), and `detections.py`. Which figures a grid or a trial has is decided in `harness.report`.
matplotlib is known here only, so import these files where a figure is drawn, not before.
"""
