"""What parts ask the host: once for all that wait, one after the other where nothing has to be waited for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import inquiry
from model.inquiry import Inquiry, answer, asking, counted, places, together
from model.types import BACKGROUND, IGNORED


class Part:
    """Asks for numbers one by one and notes when it does."""

    def __init__(self, name: str, numbers: list[int], notes: list[str]):
        self.name, self.numbers, self.notes = name, numbers, notes

    @asking
    def total(self, *, doubled: bool = False) -> Inquiry[int]:
        found = 0
        for number in self.numbers:
            self.notes.append(f"{self.name}{number}")
            (reply,) = yield (torch.tensor(number),)
            found += int(reply)
        return 2 * found if doubled else found


def parts() -> tuple[list[Part], list[str]]:
    notes: list[str] = []
    return [Part("a", [1, 2], notes), Part("b", [], notes), Part("c", [3, 4, 5], notes)], notes


def test_a_part_that_is_called_asks_by_itself() -> None:
    (first, *_), _ = parts()
    assert first.total() == 3 and first.total(doubled=True) == 6


def test_on_a_cpu_one_part_is_through_before_the_next_begins() -> None:
    own, notes = parts()
    assert answer(together([inquiry.inquiry(part.total) for part in own])) == [3, 0, 12]
    assert notes == ["a1", "a2", "c3", "c4", "c5"]


def test_one_copy_answers_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    own, notes = parts()
    copies: list[int] = []
    on_host = inquiry.on_host
    monkeypatch.setattr(inquiry, "is_at_hand", lambda question: False)
    monkeypatch.setattr(inquiry, "on_host", lambda question: copies.append(len(question)) or on_host(question))
    assert answer(together([inquiry.inquiry(part.total, doubled=True) for part in own])) == [6, 0, 24]
    assert notes == ["a1", "c3", "a2", "c4", "c5"] and copies == [2, 2, 1]


def test_what_asks_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(together([inquiry.inquiry(max, 3, 4), inquiry.inquiry(len, "abc")])) == [4, 3]


def test_one_copy_keeps_types_shapes_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "is_at_hand", lambda question: False)
    question = (
        torch.tensor([[True, False, True]]),
        torch.arange(6, dtype=torch.int64).view(2, 3).t(),
        torch.tensor(0.1, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    )
    for given, found in zip(question, inquiry.on_host(question), strict=True):
        assert found.dtype == given.dtype and torch.equal(found, given)


def test_places_are_those_of_nonzero() -> None:
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    expected: tuple[Tensor, ...] = mask.nonzero(as_tuple=True)
    for found in (places(mask), places(mask, int(mask.sum()))):
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert [len(index) for index in places(torch.zeros(2, 2, dtype=torch.bool), 0)] == [0, 0]


def test_positives_and_candidates_are_counted_by_image() -> None:
    gt_index = torch.tensor([[0, 3, BACKGROUND, IGNORED], [IGNORED, IGNORED, IGNORED, BACKGROUND]])
    assert answer(counted(gt_index)) == ((2, 3), (0, 1))
