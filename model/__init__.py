"""The detector: pure torch (and scipy for matching), without ray, mlflow, files or experiments.

Read `detector.py` first: it is the map of the paper's Figure 4. This package imports nothing here,
so that configurations (`model.config`) can be read without loading torch.
"""
