"""Focal and quality focal loss that keep logits and labels for the backward pass, and nothing of [..., C] besides.

All but one class of a query has the target 0, so that both losses and their gradients are computed for that, and put
right at the label. Elementwise formulas, intermediate results of which would be kept otherwise, stay in one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Target = Tensor | float  # in [0, 1]


class Logits(NamedTuple):
    """Logits, their probabilities, and the logarithms of these."""

    values: Tensor
    probability: Tensor
    log: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Logits:
        """Of all of them at once: alone, or in another layout, an exponential may be rounded otherwise."""
        return cls(values, values.sigmoid(), F.logsigmoid(values))

    def at(self, place: Tensor) -> Logits:
        """[..., 1] those of one class each."""
        return Logits(*(own.gather(-1, place) for own in self))

    def cross_entropy(self, target: Target) -> Tensor:
        """[...] with targets in [0, 1]."""
        return (self.values if _is_zero(target) else (1 - target) * self.values) - self.log


class Term(Protocol):
    """A loss of one logit and its target, and its derivative."""

    def value(self, logits: Logits, target: Target) -> Tensor:
        """[...] of `logits` [...]."""
        ...

    def gradients(self, logits: Logits, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """Two parts [...] of that of the logits, from that of the loss, `outer` [...]."""
        ...


def _is_zero(target: Target) -> bool:
    return isinstance(target, float) and target == 0


class FocalTerm:
    """-a (1 - p)^g log p of a target of 1, -(1 - a) p^g log(1 - p) of one of 0 (Lin et al. 2017)."""

    def __init__(self, alpha: float, gamma: float):
        self.alpha, self.gamma = alpha, gamma

    def value(self, logits: Logits, target: Target) -> Tensor:
        """See `Term`; the target is 0 or 1."""
        missed = _miss(logits.probability, target).pow(self.gamma)
        return (self._balance(target) * missed).mul_(logits.cross_entropy(target))

    def gradients(self, logits: Logits, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """See `Term`: by way of the cross entropy, and of its factor."""
        probability, balance = logits.probability, self._balance(target)
        miss = _miss(probability, target)
        by_miss = logits.cross_entropy(target).mul_(outer).mul_(balance)
        by_miss = by_miss.mul_(miss.pow(self.gamma - 1).mul_(self.gamma))
        if not _is_zero(target):
            by_miss = by_miss - 2 * target * by_miss  # what the target's class misses is 1 - p
        by_entropy = miss.pow(self.gamma).mul_(balance).mul_(outer).mul_(probability - target)
        return by_entropy, torch.ops.aten.sigmoid_backward(by_miss, probability)

    def _balance(self, target: Target) -> Target:
        return self.alpha * target + (1 - self.alpha) * (1 - target)


def _miss(probability: Tensor, target: Target) -> Tensor:
    return probability if _is_zero(target) else probability + target - 2 * probability * target


class QualityTerm:
    """|target - p|^b times cross entropy (Li et al. 2020, Eq. 4)."""

    def __init__(self, beta: float):
        self.beta = beta

    def value(self, logits: Logits, target: Target) -> Tensor:
        """See `Term`."""
        return (target - logits.probability).abs().pow(self.beta) * logits.cross_entropy(target)

    def gradients(self, logits: Logits, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """See `Term`: by way of the cross entropy, and of its factor."""
        apart = target - logits.probability
        distance = apart.abs()
        by_apart = logits.cross_entropy(target).mul_(outer).mul_(distance.pow(self.beta - 1).mul_(self.beta))
        by_apart = by_apart.mul_(apart.sign()).neg_()
        by_entropy = distance.pow_(self.beta).mul_(outer).mul_(apart.neg_())
        return by_entropy, torch.ops.aten.sigmoid_backward(by_apart, logits.probability)


class _OneClass(torch.autograd.Function):
    """A term of [..., C] logits whose target is 0 but for one class; targets get no gradient.

    The logits come twice, for the two parts of their gradient. Whoever else uses them adds to it as well, and the sum
    is then the one that torch's own operators give, to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, _: Tensor, labels: Tensor, targets: Tensor, term: Term) -> Tensor:
        ctx.save_for_backward(logits, labels, targets)
        ctx.term = term
        given = Logits.of(logits)
        (value,) = _put_right((term.value(given, 0.0),), labels, lambda *own: (term.value(*own),), given, targets)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, labels, targets = ctx.saved_tensors
        term: Term = ctx.term
        logits = Logits.of(values)
        parts = term.gradients(logits, 0.0, gradient)
        return *_put_right(parts, labels, term.gradients, logits, targets, gradient), None, None, None


def _put_right(
    results: tuple[Tensor, ...],
    labels: Tensor,
    function: Callable[..., tuple[Tensor, ...]],
    logits: Logits,
    targets: Tensor,
    *more: Tensor,
) -> tuple[Tensor, ...]:
    """`results` [..., C] of `function` where all targets are 0, with those of labels in [0, C) in their places."""
    number = logits.values.shape[-1]
    if number:
        known = ((labels >= 0) & (labels < number))[..., None]
        place = labels.clamp(0, number - 1)[..., None]
        own = function(logits.at(place), targets[..., None], *(given.gather(-1, place) for given in more))
        for result, part in zip(results, own, strict=True):
            result.scatter_(-1, place, part.where(known, result.gather(-1, place)))
    return results


def one_class(logits: Tensor, labels: Tensor, targets: Tensor, term: Term) -> Tensor:
    """[..., C] a term of `logits` [..., C]; the target is that of `targets` [...] at a label in [0, C), elsewhere 0."""
    result: Tensor = _OneClass.apply(logits, logits, labels, targets.to(logits), term)
    return result
