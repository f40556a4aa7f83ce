"""Numbers that the device has and the host needs, such as how many anchors are positive.

A copy to the host waits for all that the device was told to do before, so that parts ask together. Who needs such
numbers is a generator, an `Inquiry`: it yields tensors and is sent the same ones on the CPU. `together` runs several
side by side, and one copy answers all that wait: the sixth head adds none to those of the first.

    @asking
    def losses(self, …) -> Inquiry[Tensor]:
        (count,) = yield (positive.sum(),)
        index, = places(positive, int(count))

is called as any method, and then asks by itself; `inquiry(part.losses, …)` is what it asks. Processes that have shares
of a batch must ask equally often, whatever their images hold: between two questions they talk to each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from model.types import IGNORED

Counts = tuple[tuple[int, int], ...]  # of each image: positives, and candidates that are not IGNORED
Question = tuple[Tensor, ...]
T = TypeVar("T")
P = ParamSpec("P")
Inquiry = Generator[Question, Question, T]


def asking(method: Callable[P, Inquiry[T]]) -> Callable[P, T]:
    """A function or method that asks the host, to be called as one that does not."""

    @functools.wraps(method)
    def answered(*arguments: P.args, **options: P.kwargs) -> T:
        return answer(method(*arguments, **options))

    answered.inquiry = method  # type: ignore[attr-defined]
    return answered


def inquiry(method: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Inquiry[T]:
    """Ask as `method` does before it gives its result; one that is not `asking` asks nothing."""
    ask: Any = getattr(method, "inquiry", None)
    if ask is None:
        return method(*arguments, **options)
    owner = getattr(method, "__self__", None)
    result: T = yield from ask(*(() if owner is None else (owner,)), *arguments, **options)
    return result


def answer(inquiry: Inquiry[T]) -> T:
    """The result, with one copy for each question."""
    try:
        question = next(inquiry)
        while True:
            question = inquiry.send(on_host(question))
    except StopIteration as end:
        result: T = end.value
        return result


def together(inquiries: Sequence[Inquiry[T]]) -> Inquiry[list[T]]:
    """All of them as one, whose questions are what they ask at the same time; their results in order."""
    results: dict[int, T] = {}
    questions: dict[int, Question] = {}

    def go_on(number: int, reply: Any) -> None:
        try:
            question = inquiries[number].send(reply)
            while is_at_hand(question):
                question = inquiries[number].send(question)
            questions[number] = question
        except StopIteration as end:
            questions.pop(number, None)
            results[number] = end.value

    for number in range(len(inquiries)):
        go_on(number, None)
    while questions:
        asked = list(questions.items())
        replies = iter((yield tuple(tensor for _, question in asked for tensor in question)))
        for number, question in asked:
            go_on(number, tuple(next(replies) for _ in question))
    return [results[number] for number in range(len(inquiries))]


def is_at_hand(question: Question) -> bool:
    """Is it answered without a copy? Then one part is through before the next begins, and draws its random numbers."""
    return all(tensor.device.type == "cpu" for tensor in question)


def on_host(tensors: Question) -> Question:
    """The same tensors on the CPU, by one copy."""
    if is_at_hand(tensors):
        return tensors
    pieces = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    parts = torch.cat(pieces).cpu().split([len(piece) for piece in pieces])
    # A copy begins where each type may.
    return tuple(
        part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)
    )


def counted(gt_index: Tensor) -> Inquiry[Counts]:
    """Ask how many positives and candidates `gt_index` [B, A] has, of each image."""
    (numbers,) = yield (torch.stack([(gt_index >= 0).sum(1), (gt_index != IGNORED).sum(1)], 1),)
    return tuple((positives, candidates) for positives, candidates in numbers.tolist())


def places(mask: Tensor, count: int | None = None) -> tuple[Tensor, ...]:
    """`mask.nonzero(as_tuple=True)` of a bool tensor with `count` places; None: nobody knows, and the host waits."""
    if count is None:
        return mask.nonzero(as_tuple=True)
    return torch.nonzero_static(mask, size=count).unbind(1)
