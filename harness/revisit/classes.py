"""The classes of trained weights: their names wherever labels come out, and whether they are those of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.data.categories import COCO, Categories, categories_of, coco_rows, disagreement, numbered
from harness.errors import UserError
from harness.revisit.trained import Found

if TYPE_CHECKING:
    from harness.data.coco import CocoDataset

OF_COCO = ("coco", "detr", "dino")  # one of these stands in the names of models that were released for COCO
OF_OTHERS = ("lvis", "o365_", "objects365")


def named_classes(found: Found, count: int, data: str | None, say: Callable[[str], None]) -> Categories:
    """The classes of a detector's `count` labels; where its weights do not tell them, a line says who does.

    Args:
        found: the detector.
        count: of its labels.
        data: a folder whose classes they are, if one was named.
        say: takes that line.

    Raises:
        UserError: the weights tell of another number of classes than they have rows for, or the folder has another.
    """
    if found.classes is not None and len(found.classes.names) != count:
        told = f"its list of classes has {len(found.classes.names)} and its weights {count}"
        raise UserError(f"{found.where}: {told}: they are damaged, or of another program; fetch them again")
    own = None if data is None else categories_of(replace(found.config.data, path=data))
    if data is not None and (own is None or len(own.names) != count):
        there = "no classes" if own is None else f"{len(own.names)} classes"
        raise UserError(f"--data {data}: {there} there, and {found.where} knows {count}; name its own data set")
    if found.classes is not None:
        return found.classes
    if own is not None:
        return own
    silent = f"note: {found.where} does not tell its classes"
    if (released := of_released(found.model, count)) is not None:
        say(f"{silent}: they have the names of COCO's, as of {found.model}")
        return released
    trained_on = categories_of(found.config.data) if found.reading is None else None
    if trained_on is not None and len(trained_on.names) == count:
        say(f"{silent}: they have the names of its data set's")
        return trained_on
    say(f"{silent}: they are numbered from 0; --data FOLDER names them by that folder's")
    return numbered(count)


def classes_by_id(found: Found, data: str | None) -> Categories | None:
    """The classes whose ids are the rows of a file (`--class-rows ids`); None where its rows are classes.

    Args:
        found: the detector.
        data: a folder with those classes, if one was named; None: they are COCO's, as DETR's.

    Raises:
        UserError: the folder tells of no classes.
    """
    if found.reading is None or not found.reading.by_category_id:
        return None
    own = COCO if data is None else categories_of(replace(found.config.data, path=data))
    if own is None:
        raise UserError(f"--data {data}: no classes there; name a data set whose category ids are the rows")
    return own


def of_released(model: str, count: int) -> Categories | None:
    """The classes of a released model by its name and number of labels; None where they are not known."""
    name = model.lower()
    known = any(word in name for word in OF_COCO) and not any(word in name for word in OF_OTHERS)
    return coco_rows(count) if known else None


def check_classes(found: Found, dataset: CocoDataset, say: Callable[[str], None]) -> None:
    """Make sure that the classes of weights are those of the data set, of which there are as many.

    Names that only one side has are told in a line: they may be other words for the same.

    Raises:
        UserError: a name stands at another label: what is detected would be counted as something else.
    """
    if found.classes is None or len(found.classes.names) != dataset.num_classes:
        return
    told, is_wrong = disagreement(found.classes, Categories(dataset.category_ids, dataset.category_names))
    if not told:
        return
    begin = f"{found.where} and {dataset.annotation_file} number their classes differently"
    if is_wrong:
        raise UserError(f"{begin}: {told}; give the categories the ids that have the order of its training")
    say(f"note: {found.where} and {dataset.annotation_file} name classes differently: {told}; labels are compared")
