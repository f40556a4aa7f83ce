"""Why it works: what heads look at, how well features tell objects from background, where customised queries lie.

`discriminability`, `conflict` and `queries` hold the definitions as pure functions on tensors (maps of a batch are
`grids`); the instability is measured during training (harness/trial/instability.py). `feed` brings a detector's tensors
to them, `collect` and `compare` gather batches into tables. `gradients` and `transfer` are about what heads teach the
parts that they share, which `shared` gives them and `influence` image by image. How far numbers depend on the images,
`bootstrap` tells of means and `resample` of AP. `analyse` is the whole. docs/metrics.md tells every choice.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.analyse import feed
from harness.analyse.collect import (
    NUM_EXAMPLES,
    Discriminability,
    Observed,
    Queries,
    discriminability_scalars,
    queries_scalars,
)
from harness.analyse.compare import Conflict, conflict_scalars
from harness.analyse.gradients import Gradients, gradient_scalars
from harness.analyse.influence import SHARE, measure
from harness.analyse.transfer import Transfer, transfer_scalars
from harness.config import AnalyseConfig, DataConfig
from harness.data.coco import CocoDataset
from harness.data.loader import Loader
from harness.data.transforms import scale_boxes
from harness.files import to_json, write_atomic
from harness.system.precision import computing_in
from model.detector import Detector
from model.types import Batch

__all__ = ["Analysed", "analyse", "table_of", "write_tables"]

SCHEMA = 1  # of the tables
SCALARS = {"queries": queries_scalars, "gradient": gradient_scalars, "transfer": transfer_scalars}


@dataclass(frozen=True)
class Analysed:
    """What an analysis found out."""

    tables: dict[str, dict[str, Any]]  # by file name without its ending
    scalars: dict[str, float | None]  # by metric name; None: undefined, as a distance without objects
    maps: dict[str, np.ndarray]  # [h, w] float16 of the first images with objects, for figures
    # by image id: [H, W, 3] uint8 at the network's size and boxes [G, 4] xyxy in its pixels, of the images in `maps`
    examples: dict[int, tuple[np.ndarray, np.ndarray]]
    num_images: int
    epoch: int | None
    seconds: float

    def for_record(self, settings: AnalyseConfig) -> dict[str, Any]:
        """What the record of a trial keeps: the settings, and the tables without the examples' positions."""
        small = {
            name: {key: value for key, value in table.items() if key != "examples"}
            for name, table in self.tables.items()
        }
        made = {"epoch": self.epoch, "error": None, "seconds": self.seconds}
        return {**settings.as_dict(), **made, "finished": datetime.now(UTC).isoformat(timespec="seconds"), **small}


def analyse(
    detector: Detector,
    dataset: CocoDataset,
    data: DataConfig,
    settings: AnalyseConfig,
    device: torch.device | str,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    epoch: int | None = None,
    floor: tuple[str, Detector] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Analysed:
    """Measure what `settings.metrics` name, in one pass over the first images of a data set.

    The detector is put in evaluation mode meanwhile, in float32. Its parameters, gradients and mode, and the random
    state are afterwards what they were.

    Args:
        detector: on `device`.
        dataset: ground truth and images, as a rule the validation split.
        data: image sizes.
        settings: which analyses, of how many images.
        device: where to work.
        batch_size: images at a time; 1 where padding changes an image, as with `compatibility: official`.
        num_workers: processes that prepare batches.
        epoch: of the training, for the tables.
        floor: name and detector of another training with the same heads, for the conflict's floor.
        on_batch: called with (done, in all), of whatever is counted; the share of both never falls.
    """
    started = time.monotonic()
    loader = Loader(
        dataset,
        data,
        batch_size=1 if detector.sees_padding else batch_size,
        training=False,
        seed=0,
        size_divisor=detector.size_divisor,
        num_workers=num_workers,
        limit=settings.num_images,
    )
    metrics, heads = set(settings.metrics), feed.heads_of(detector)
    collectors: dict[str, Any] = {}
    if "discriminability" in metrics:
        collectors["discriminability"] = Discriminability(("discriminability", *settings.discriminability_variants))
    if "conflict" in metrics:
        collectors["conflict"] = Conflict(heads, settings.conflict_variants, floor[1] if floor else None)
    if "queries" in metrics:
        collectors["queries"] = Queries(heads)
    both: dict[str, Gradients | Transfer] = {"gradient": Gradients(heads), "transfer": Transfer(heads)}
    influence: dict[str, Any] = {name: own for name, own in both.items() if name in metrics}
    examples: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    passes = bool(collectors) + bool(influence)
    with _evaluating(detector, torch.device(device)):
        if collectors:
            tell = _part(on_batch, 0, passes)
            examples = _gather(detector, dataset, loader, collectors, torch.device(device), tell)
        if influence:
            other = floor[1] if floor else None
            singles = Loader(
                dataset,
                data,
                batch_size=1,
                training=False,
                seed=0,
                size_divisor=detector.size_divisor,
                num_workers=num_workers,
                limit=math.ceil(SHARE * loader.num_images),
            )
            own = list(influence.values())
            tell = _part(on_batch, passes - 1, passes)
            measure(detector, singles.epoch(0), own, torch.device(device), floor=other, on_batch=tell)
    common = {"schema": SCHEMA, "num_images": loader.num_images, "epoch": epoch}
    tables, scalars = _tables({**collectors, **influence}, common, floor[0] if floor else None)
    maps = {name: values for own in collectors.values() for name, values in getattr(own, "maps", {}).items()}
    return Analysed(tables, scalars, maps, examples, loader.num_images, epoch, time.monotonic() - started)


def _part(on_batch: Callable[[int, int], None] | None, number: int, passes: int) -> Callable[[int, int], None] | None:
    """Tells what is done of one of several passes as a share of all of them."""
    return on_batch and (lambda done, count: on_batch(number * count + done, passes * count))


def _gather(
    detector: Detector,
    dataset: CocoDataset,
    loader: Loader,
    collectors: dict[str, Any],
    device: torch.device,
    on_batch: Callable[[int, int], None] | None,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Show every batch to every collector; returns the images that figures show."""
    place = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    compare = collectors.get("conflict")
    examples: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with torch.set_grad_enabled(compare is not None):
        torch.manual_seed(0)
        for done, cpu_batch in enumerate(loader.epoch(0), 1):
            batch = cpu_batch.to(device)
            with_objects = [row for row, count in enumerate(batch.targets.host_counts()) if count]
            rows = with_objects[: NUM_EXAMPLES - len(examples)]
            examples |= {batch.image_ids[row]: _example(cpu_batch, row) for row in rows}
            root = feed.encode(detector, batch)
            decoded = feed.decode(detector, root, batch)
            seen = Observed(batch, root, decoded, _crowd(dataset, place, batch), rows)
            for name, collector in collectors.items():
                collector.add(seen) if name == "discriminability" else collector.add(seen, detector)
            if on_batch:
                on_batch(done, len(loader))
    return examples


@contextmanager
def _evaluating(detector: Detector, device: torch.device) -> Iterator[None]:
    """The detector in evaluation mode and float32, with random numbers of its own."""
    was_training = detector.training
    cuda = [device.index or 0] if device.type == "cuda" else []
    detector.eval()
    try:
        with computing_in("fp32", device), torch.random.fork_rng(cuda):
            yield
    finally:
        detector.train(was_training)


def _example(batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """An image as the loader gives it to the network, before normalisation, and its boxes."""
    height, width = batch.valid_hw[row].tolist()
    image = batch.images[row, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
    return image, batch.targets.boxes_xyxy[row][batch.targets.valid[row]].numpy()


def _crowd(dataset: CocoDataset, place: dict[int, int], batch: Batch) -> Tensor:
    """[B, N, 4] crowd regions in pixels of the batch, padded with boxes without area."""
    assert batch.original_hw is not None
    shown_hw = batch.valid_hw if batch.content_hw is None else batch.content_hw
    found = []
    for image_id, old, new in zip(batch.image_ids, batch.original_hw.tolist(), shown_hw.tolist(), strict=True):
        crowd = dataset.boxes(place[image_id])[2]
        found.append(torch.from_numpy(scale_boxes(crowd, tuple(old), tuple(new))))
    regions = torch.zeros(len(found), max(map(len, found)), 4)
    for row, own in zip(regions, found, strict=True):
        row[: len(own)] = own
    return regions.to(batch.images.device)


def _tables(
    collectors: dict[str, Any], common: dict[str, Any], floor: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
    tables: dict[str, dict[str, Any]] = {}
    scalars: dict[str, float | None] = {}
    for name, collector in collectors.items():
        if name == "conflict":
            for variant in collector.variants:
                table = collector.table(variant)
                if table["floor"] is not None:
                    table["floor"]["against"] = floor
                tables[table_of(variant)] = table
                scalars |= conflict_scalars(table)
        elif name == "discriminability":
            for reading in collector.readings:
                tables[reading] = collector.table(reading)
                scalars |= discriminability_scalars(tables[reading])
        else:
            tables[name] = collector.table()
            scalars |= SCALARS[name](tables[name])
    kinds = {name: name.split(".")[0] for name in tables}
    return {name: {**common, "kind": kinds[name], **table} for name, table in tables.items()}, scalars


def table_of(variant: str) -> str:
    """The name of the table of a way to measure the conflict."""
    return "conflict" if variant == "cam-v1" else f"conflict.{variant}"


def write_tables(found: Analysed, folder: Path) -> list[Path]:
    """Write each table as JSON, and the maps as `maps.npz`; returns the files."""
    paths = []
    for name, table in found.tables.items():
        paths.append(folder / f"{name}.json")
        write_atomic(paths[-1], to_json(table) + "\n")
    if found.maps:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **found.maps)
        paths.append(folder / "maps.npz")
        write_atomic(paths[-1], buffer.getvalue())
    (folder / "error.txt").unlink(missing_ok=True)  # of an analysis that failed before
    return paths
