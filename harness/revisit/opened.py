"""A trained detector with its weights, the images to show it, and what is found out about it there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from harness.analyse import Analysed, analyse
from harness.choose import find_trial
from harness.config import DataConfig
from harness.data import open_dataset
from harness.data.loader import Loader, evaluated_at_once
from harness.errors import UserError
from harness.revisit.asked import Request
from harness.revisit.classes import check_classes
from harness.revisit.kept import Say
from harness.revisit.trained import Built, Found, build, read_trial
from harness.store.results import RunStore
from harness.trial.build import choose_device
from harness.trial.evaluate import Evaluation, evaluate
from model.detector import Detector
from model.heads import needs_masks

if TYPE_CHECKING:
    import torch

    from harness.data.coco import CocoDataset


@dataclass(frozen=True)
class Opened:
    """A detector that was built, and the images to show it."""

    built: Built
    data: DataConfig
    dataset: CocoDataset
    device: torch.device
    batch_size: int

    @property
    def detector(self) -> Detector:
        """With its trained weights."""
        return self.built.detector


def open_found(found: Found, request: Request, say: Say) -> Opened:
    """The detector with its weights, and its own validation split or that of `request.data`.

    Raises:
        UserError: weights and configuration, or data set and classes do not fit.
    """
    device = choose_device(request.device)
    data = found.config.data if request.data is None else replace(found.config.data, path=request.data)
    with_masks = request.evaluate and needs_masks(found.config.model.heads)
    images = partial(open_dataset, data, "val", progress=say, with_masks=with_masks)
    by_id = found.reading is not None and found.reading.by_category_id
    dataset = images() if by_id else None  # otherwise weights that do not fit are told before it is read
    ids = dataset.category_ids if dataset else ()
    built = build(found, device, category_ids=ids, verbose=request.verbose, say=say)
    dataset = dataset or images()
    number = built.detector.num_classes
    if dataset.num_classes != number:
        enough = number > max(dataset.category_ids) and not built.translation.is_own
        rows = "; where its rows are category ids, as DETR's 91, give --class-rows ids" if enough else ""
        raise UserError(
            f"{found.where} knows {number} classes, {dataset.annotation_file} has {dataset.num_classes}; "
            f"give the data set it was trained on, or one with the same classes{rows}"
        )
    check_classes(found, dataset, say)
    train = found.config.train
    return Opened(built, data, dataset, device, max(1, train.batch_size // train.accumulate_steps))


def analyse_found(found: Found, opened: Opened, request: Request, store: RunStore, say: Say) -> Analysed:
    """What `request.settings` ask for.

    Raises:
        UserError: the two detectors of a floor do not fit, or what it predicts is not finite.
    """
    floor = _floor(request, found, opened.detector, store, opened.device)
    with predicting(found):
        return analyse(
            opened.detector,
            opened.dataset,
            opened.data,
            request.settings,
            opened.device,
            batch_size=2 * opened.batch_size,
            epoch=found.epoch,
            floor=floor,
            on_batch=_ticker(found, "analysed", say),
        )


def evaluate_found(found: Found, opened: Opened, say: Say, max_detections: int | None = None) -> Evaluation:
    """COCO's metrics on the whole split, as at the end of a training with this configuration.

    `max_detections` of an image in its place, if given.

    Raises:
        UserError: what it predicts is not finite.
    """
    config = found.config.evaluate
    config = config if max_detections is None else replace(config, max_detections=max_detections)
    at_once = evaluated_at_once(opened.batch_size, opened.data, sees_padding=opened.detector.sees_padding)
    loader = Loader(
        opened.dataset,
        opened.data,
        batch_size=1 if opened.detector.official else at_once,  # released ones are large, also where padding is none
        training=False,
        seed=0,
        size_divisor=opened.detector.size_divisor,
    )
    with predicting(found):
        return evaluate(
            opened.detector,
            loader,
            opened.dataset,
            config,
            opened.device,
            precision=found.config.evaluate.computes_in(found.config.train),
            on_batch=_ticker(found, "evaluated", say),
            errors=True,
        )


@contextmanager
def predicting(found: Found) -> Iterator[None]:
    """Within, predictions that are not finite are told as what they are here: nothing trains that could be changed."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"{found.where}: its weights are finite, and what it predicts of these images is not; they are damaged, or "
            "of a training that diverged: take others (or evaluate.precision: fp32, where that is another)"
        ) from error


def _ticker(found: Found, what: str, say: Say) -> Callable[[int, int], None]:
    """Tells every few seconds how far it is."""
    said = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            say(f"{found.name}  {what} {done / count:.0%}")

    return on_batch


def _floor(
    request: Request, found: Found, detector: Detector, store: RunStore, device: torch.device
) -> tuple[str, Detector] | None:
    if request.floor is None:
        return None
    trial_id = find_trial(store, request.floor)
    if trial_id == found.name:
        raise UserError(f"--floor {request.floor}: this is the same trial; name one trained from another seed")
    other = build(read_trial(store, trial_id), device).detector
    names = [[name for name, _ in one.named_heads()] for one in (detector, other)]
    if names[0] != names[1] or other.num_classes != detector.num_classes:
        heads = [", ".join(own) or "none" for own in names]
        raise UserError(
            f"--floor {trial_id}: its heads ({heads[1]}) and classes must be those of {found.name} ({heads[0]})"
        )
    return trial_id, other
