"""Columns of a large table as sequences of plain values, without a Python object for each row.

A list of a million entries costs a hundred megabytes in every process, and worker processes copy it because they count
references to its entries. An array does neither, and can be a mapped file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast, overload

import numpy as np

T = TypeVar("T")
POLYGONS, COUNTS, TEXT = range(3)  # how a segmentation is given


class _Rows(Sequence[T]):
    """What columns have in common; compared with a tuple they are one."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _at(self, row: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(map(self._at, range(*index.indices(len(self)))))
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._at(row)

    def __iter__(self) -> Iterator[T]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


class Column(_Rows[T]):
    """Numbers [N], or rows of numbers [N, K] as tuples."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def _at(self, row: int) -> T:
        value: Any = self.values[row].tolist()
        item: Any = tuple(value) if isinstance(value, list) else value
        return cast("T", item)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)


class Texts(_Rows[str]):
    """Texts one after the other in one array.

    Args:
        data: [M] uint8, UTF-8; halves of characters, as names of files may hold, too.
        ends: [N] int64, where each one ends.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.ends = data, ends

    def __len__(self) -> int:
        return len(self.ends)

    def _at(self, row: int) -> str:
        start = self.ends[row - 1] if row else 0
        return self.data[start : self.ends[row]].tobytes().decode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Columns of texts."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), _ends(map(len, encoded)))


class Lists(_Rows[tuple[int, ...]]):
    """Lists of whole numbers one after the other in one array.

    Args:
        values: [M] int32.
        ends: [N] int64, where each one ends.
    """

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends

    def __len__(self) -> int:
        return len(self.ends)

    def _at(self, row: int) -> tuple[int, ...]:
        start = self.ends[row - 1] if row else 0
        return tuple(self.values[start : self.ends[row]].tolist())

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> Lists:
        """Columns of lists."""
        values, lengths = array("i"), array("q")
        for own in lists:
            values.extend(own)
            lengths.append(len(own))
        return cls(np.array(values, np.int32), _ends(lengths))


class Segmentations:
    """Checked segmentations of COCO's kinds in flat arrays.

    Args:
        kinds: [N] uint8, `POLYGONS`, `COUNTS` or `TEXT`.
        parts: [N] int64, end of each object's parts: its polygons, or its one list of counts.
        ends: [P] int64, end of each part in `numbers`.
        numbers: [M] float64, which holds whole numbers as well.
        text: [T] uint8, packed run lengths one after the other.
        text_ends: [N] int64.
    """

    NAMES = ("kinds", "parts", "ends", "numbers", "text", "text_ends")

    def __init__(self, *columns: np.ndarray) -> None:
        self.kinds, self.parts, self.ends, self.numbers, *text = columns
        self._texts = Texts(*text)

    def __len__(self) -> int:
        return len(self.kinds)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        values = (self.kinds, self.parts, self.ends, self.numbers, self._texts.data, self._texts.ends)
        return dict(zip(self.NAMES, values, strict=True))

    def at(self, row: int, hw: tuple[int, int]) -> dict[str, Any] | list[np.ndarray]:
        """Polygons x0, y0, x1, y1, …, or run lengths {"size", "counts"}, of an object on an image of size `hw`."""
        if self.kinds[row] == TEXT:
            return {"size": list(hw), "counts": self._texts[row]}
        first = self.parts[row - 1] if row else 0
        spans = [(self.ends[part - 1] if part else 0, self.ends[part]) for part in range(first, self.parts[row])]
        polygons = [self.numbers[start:end] for start, end in spans]
        if self.kinds[row] == POLYGONS:
            return polygons
        return {"size": list(hw), "counts": polygons[0].astype(np.int64).tolist()}

    def run_counts(self) -> np.ndarray:
        """[N] how many numbers each text of run lengths has; 0 without text. The last character of each says so."""
        lengths = np.diff(self._texts.ends, prepend=0)
        counts, is_text = np.zeros(len(self), np.int64), lengths > 0
        if is_text.any():
            ends_number = (self._texts.data - np.uint8(ord("0"))) & 0x20 == 0
            counts[is_text] = np.add.reduceat(ends_number, (self._texts.ends - lengths)[is_text], dtype=np.int64)
        return counts

    @classmethod
    def of(cls, segmentations: Iterable[Any]) -> Segmentations:
        """Of lists of arrays, or mappings with `counts` as an array or a text."""
        kinds, parts, ends, numbers, texts = array("B"), array("q"), array("q"), array("d"), []
        for own in segmentations:
            counts = own["counts"] if isinstance(own, dict) else None
            kinds.append(POLYGONS if counts is None else TEXT if isinstance(counts, str) else COUNTS)
            texts.append(counts if isinstance(counts, str) else "")
            for part in own if counts is None else () if isinstance(counts, str) else (counts,):
                numbers.extend(map(float, part) if part.typecode != "d" else part)
                ends.append(len(numbers))
            parts.append(len(ends))
        text = Texts.of(texts)
        return cls(
            np.array(kinds, np.uint8),
            np.array(parts, np.int64),
            np.array(ends, np.int64),
            np.array(numbers, np.float64),
            text.data,
            text.ends,
        )


def _ends(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum(np.fromiter(lengths, np.int64), dtype=np.int64)
