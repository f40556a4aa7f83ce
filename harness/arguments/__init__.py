"""The arguments of the command line, described without loading what the commands need."""

from __future__ import annotations

import argparse

from harness.arguments.grids import add_grids
from harness.arguments.records import add_records
from harness.arguments.reports import add_reports
from harness.arguments.weights import add_weights

DESCRIPTION = "Ablations of Co-DETR: one YAML file per paper table, trained with Ray, compared in MLflow."
EXAMPLES = """\
examples:
  codetr plan   ablations/quickstart.yaml                       what would run, and what is done already
  codetr run    ablations/quickstart.yaml                       run what is missing, print the table
  codetr run    ablations/quickstart.yaml --preset digits_fast  the same in seconds, to see it work
  codetr run    ablations/quickstart.yaml --data my_coco_folder --set train.epochs=20 --seeds 0,1,2
  codetr submit --store /shared/codetr ablations/quickstart.yaml   the same on a Ray cluster
  codetr decide ablations/quickstart.yaml --budget 6h           seeds where claims are open, until all are settled
  codetr plan   ablations/quickstart.yaml --cost                what is left will take, from what was measured
  codetr plan   ablations/quickstart.yaml --memory              what a training step takes of a GPU's memory
  codetr run    ablations/quickstart.yaml --only heads=atss     some of its trials
  codetr status                                                 each grid: done, running, failed and why
  codetr logs   a1b2                                            one trial, by the beginning of its id
  codetr diff   a1b2 c3d4                                       what differs between two trials
  codetr retry                                                  failed trials are pending again
  codetr report ablations/*.yaml --out reports                  one page, tables and figures
  codetr export --out records.zip                               finished records, for `codetr import` elsewhere
  codetr analyse a1b2c3                                         conflict, discriminability and queries of a trial
  codetr import-weights released.pth --model co_dino_5scale_r50_1x_coco   official weights
  codetr evaluate released.safetensors --data data/coco         their AP beside the published one
  codetr detect a1b2c3 photos/                                  what it finds, drawn on images of your own
  codetr export-model a1b2c3 --onnx detector.onnx               the detector for onnxruntime
  codetr ui                                                     the MLflow pages
  codetr doctor                                                 are the fast operators at work here?

Records lie in $CODETR_STORE (default ~/codetr), generated data in $CODETR_CACHE (~/.cache/codetr);
MLFLOW_TRACKING_URI names another tracking store. What an ablation file may say: ablations/README.md
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="codetr", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (add_grids, add_reports, add_weights, add_records):  # in the order of the help
        add(commands)
    return parser
