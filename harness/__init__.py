"""From an ablation file to the paper's table, in the order of the story.

Read `spec` (a file becomes an exact list of trials), `schedule` (who runs them), `trial` (build, train, evaluate,
analyse, record) with `data`, `mistakes` and `analyse`, then `store` (the durable records), `tracking` (MLflow mirrors
them) and `report` with `figures`. `decide` trains the seeds that claims still need, `revisit` looks at trained
detectors again. `system` is what all of them ask of the machine. `arguments` is what a command line may say. The files
beside the packages are the command line (`__main__`) and its commands, `commands`, `store_commands`, `submit` and
`doctor`, with `choose` (which trials are meant) and `compare` (two of them), and what every package may use: `config`,
`files`, `errors`, `passwords`. This file imports nothing, so that `codetr --help` is quick.
"""
