"""From an ablation file to the paper's table, in the order of the story.

Read `spec` (what a file may say), `grid` (the exact list of trials), `schedule` (who runs them), `trial` (build,
train, evaluate, analyse, record) with `train`, `evaluate`, `analyse` and `data`, then `results` (the durable record),
`tracking` (MLflow mirrors it) and `report` (tables and figures). `__main__` holds the commands. This file imports
nothing, so that `codetr --help` is quick.
"""
