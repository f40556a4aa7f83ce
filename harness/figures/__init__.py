"""What the figures look like: pure functions that take labelled tables, arrays and images, and return a Figure.

`style.py` holds what all share and writes the files, `series.py` turns seeds into means and bands; then a file per
kind: `epochs.py` (paper Figures 1 and 5), `discriminability.py` (2), `maps.py` (3), `conflict.py` (6), `queries.py`
(7), `matrices.py` (8 and 9), `influence.py` (what heads do to the decoder), `against.py` (a metric along an axis),
`errors.py` (what they cost), `matching.py` (what is right, and the worst images), `detections.py` (beside ground truth)
and `pictures.py` (on one image), with `images.py` and `boxes.py` (how images and outlines are drawn in all of them).
Which figures a grid or a trial has is decided in `harness.report`.
matplotlib is known here only, so import these files where a figure is drawn, not before.
"""
