"""VOC's XML files: an `object` each, with its name and its `bndbox` in pixels.

VOC counts pixels from 1 and both corners belong to the box: x = xmin - 1 and width = xmax - xmin + 1, so a box from 1
to the image's width is as wide as the image. Objects that are `difficult`, which VOC's evaluation ignores, become crowd
regions, which COCO's ignores.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from harness.data.checks import brief
from harness.data.disk import open_file, shown
from harness.data.foreign import Foreign, Row, Seen, box_trouble, within

CORNERS = ("xmin", "ymin", "xmax", "ymax")
DEEPEST = 100  # elements inside each other
SINGLE = {"annotation": ("size",), "size": ("width", "height"), "object": ("name", "difficult", "bndbox")}
SINGLE |= {"bndbox": CORNERS}  # what an element must not hold twice, as one of both would be left out
LINE = "line"  # of an element's attributes: where it begins


class XMLTrouble(ValueError):
    """What is wrong with an XML file, in words."""


class VocLabels:
    """Reads XML files.

    Args:
        found: the folder, whose problems these are.
    """

    def __init__(self, found: Foreign) -> None:
        self._problems = found.problems
        self._classes: set[str] = set()
        self._seen = Seen()

    def rows(self, content: bytes, place: str, size: tuple[int, int]) -> list[Row]:
        """See `foreign.Labels`."""
        try:
            root = read_xml(content)
        except XMLTrouble as error:
            self._problems.add("XML", f"{place} {error}")
            return []
        if root.tag != "annotation":
            told = f"is no VOC annotation: it holds {brief(root.tag)} instead of annotation"
            self._problems.add("XML", f"{place} {told}; export it as Pascal VOC")
            return []
        self._check_single(root, place)
        if (sides := root.find("size")) is not None:
            self._check_single(sides, place)
        self._check_size(sides, place, size)
        nodes = [node for node in root.findall("object") if self._check_object(node, place)]
        found = (self._object(node, f"{place}:{node.get(LINE)}", size) for node in nodes)
        return [row for row in found if row is not None]

    def categories(self) -> dict[Any, Row]:
        """See `foreign.Labels`."""
        for kind, told in {
            "clipped": "boxes clipped by at most 1 pixel",
            "zero": "boxes begin at 0, so pixels were not counted from 1 as VOC does: boxes may be a pixel off",
            "difficult": "objects are difficult: as crowd regions they are neither learnt nor counted",
            "no size": "files tell no size, so the image's is taken",
        }.items():
            if count := self._seen.count[kind]:
                self._problems.note(f"{count:,} {told} ({self._seen.first[kind]} is the first)")
        return {name: {"id": number, "name": name} for number, name in enumerate(sorted(self._classes), 1)}

    def _check_single(self, node: Element, place: str) -> bool:
        """Does an element hold once what it can hold once?"""
        counts = Counter(inner.tag for inner in node)
        twice = [tag for tag in SINGLE[node.tag] if counts[tag] > 1]
        for tag in twice:
            self._problems.add("twice", f"{place}:{node.get(LINE)}: the {node.tag} has {counts[tag]} {tag}; keep one")
        return not twice

    def _check_object(self, node: Element, place: str) -> bool:
        box = node.find("bndbox")
        return self._check_single(node, place) and (box is None or self._check_single(box, place))

    def _check_size(self, node: Element | None, place: str, size: tuple[int, int]) -> None:
        """Does the file tell the image's size, if any?"""
        texts = [text_of(node, name) for name in ("width", "height")] if node is not None else ["", ""]
        told = [number_of(text) for text in texts]
        if not any(texts) or told == [0, 0]:
            self._seen.add("no size", place)
        elif told != list(size):
            sides, turned = "x".join(map(shown, texts)), told == [*size][::-1]
            hint = (
                "store the image upright if the boxes are of it turned" if turned else "correct the file or its boxes"
            )
            real = f"the image has {size[0]}x{size[1]} pixels"
            self._problems.add("size", f"{place}: {real}, but size says {sides[:40]}; {hint}")

    def _object(self, node: Element, where: str, size: tuple[int, int]) -> Row | None:
        """An object as a row; None where it is none, which is told."""
        name = " ".join(text_of(node, "name").split())
        difficult = text_of(node, "difficult").strip() or "0"
        box = node.find("bndbox")
        if not name or not name.isprintable():
            self._problems.add("name", f"{where}: the object has no name; add it")
        elif difficult not in ("0", "1"):
            self._problems.add("difficult", f"{where}: difficult is {brief(difficult)}; must be 0 or 1")
        elif box is None:
            there = [tag for tag in ("polygon", "robndbox", "points") if node.find(tag) is not None]
            told = f" but a {there[0]}" if there else ""
            self._problems.add("no box", f"{where}: the object ({brief(name)}) has no bndbox{told}; add it")
        else:
            self._classes.add(name)
            bbox = self._box([text_of(box, corner).strip() for corner in CORNERS], where, size)
            if bbox is not None:
                crowd = int(difficult)
                if crowd:
                    self._seen.add("difficult", where)
                return {"category": name, "bbox": bbox, "area": round(bbox[2] * bbox[3], 4), "iscrowd": crowd}
        return None

    def _box(self, texts: list[str], where: str, size: tuple[int, int]) -> list[float] | None:
        """x, y, width and height of an object; None where they cannot be, which is told."""
        numbers = [number for text in texts if (number := number_of(text)) is not None]
        told = ", ".join(f"{corner} {text or 'missing'}" for corner, text in zip(CORNERS, texts, strict=True))
        told = brief(told).strip("'\"")
        if len(numbers) != len(CORNERS):
            self._problems.add("corners", f"{where}: {told}: must be four numbers; correct it")
            return None
        xmin, ymin, xmax, ymax = numbers
        box = (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1)
        trouble = box_trouble(*box, size)
        if xmax < xmin or ymax < ymin:
            self._problems.add(
                "order", f"{where}: {told}: must be the upper left and the lower right corner; correct it"
            )
        elif max(numbers) <= 1 and not all(map(float.is_integer, numbers)):
            self._problems.add("shares", f"{where}: {told}: shares of the image's sides; give pixels")
        elif trouble == "outside":
            told = f"{told} reaches outside the image of {size[0]}x{size[1]} pixels"
            self._problems.add("outside", f"{where}: {told}; clip or remove it")
        elif trouble:
            self._problems.add("empty", f"{where}: {told} has no area in the image; correct or remove it")
        else:
            if min(xmin, ymin) < 1:
                self._seen.add("zero", where)
            elif xmax > size[0] + 0.01 or ymax > size[1] + 0.01:
                self._seen.add("clipped", where)
            return within(*box, size)
        return None


def text_of(node: Element, name: str) -> str:
    """The text of an element inside; empty where there is none."""
    found = node.find(name)
    return (found.text or "") if found is not None else ""


def number_of(text: str) -> float | None:
    """The finite number that a text is, if any."""
    with suppress(ValueError):
        if "_" not in text and math.isfinite(number := float(text)):
            return number
    return None


def filename_of(path: Path) -> str:
    """The image that an XML file names; empty where it names none, or cannot be read, which is told later."""
    with suppress(OSError, XMLTrouble), open_file(path) as stream:
        return os.path.normpath(name) if (name := text_of(read_xml(stream.read()), "filename").strip()) else ""
    return ""


def read_xml(content: bytes) -> Element:
    """The root of an XML file; each element knows its line. Entities are refused: they can name or grow to anything.

    Raises:
        XMLTrouble: it is no XML, declares entities, or is nested too deep.
    """
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise XMLTrouble("is nested too deep for a VOC annotation; export it again")
        builder.start(tag, {LINE: str(parser.CurrentLineNumber)})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*declared: Any) -> None:
        raise XMLTrouble("declares a document type, which may hold anything; remove the DOCTYPE")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except XMLTrouble:
        raise
    except expat.ExpatError as error:
        told = expat.ErrorString(error.code)
        raise XMLTrouble(f"is broken XML ({told} in line {error.lineno}); correct it or export it again") from error
    except (ValueError, LookupError, AssertionError) as error:
        raise XMLTrouble(f"cannot be read as XML ({error}); save it as UTF-8") from error
