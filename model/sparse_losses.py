"""Focal and quality focal loss that keep logits and labels for the backward pass, and nothing of [..., C] besides.

All but one class of a query has the target 0, so that both losses and their gradients are computed for that, and put
right at the label. Elementwise formulas, intermediate results of which would be kept otherwise, stay in one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Target = Tensor | float  # in [0, 1]


class Term(Protocol):
    """A loss of one logit and its target, and its derivative."""

    def value(self, logits: Tensor, target: Target) -> Tensor:
        """[...] of `logits` [...]."""
        ...

    def gradients(self, logits: Tensor, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """Two parts [...] of that of the logits, from that of the loss, `outer` [...]."""
        ...


def _cross_entropy(logits: Tensor, target: Target) -> Tensor:
    linear = logits if isinstance(target, float) and target == 0 else (1 - target) * logits
    return linear - F.logsigmoid(logits)


class FocalTerm:
    """-a (1 - p)^g log p of a target of 1, -(1 - a) p^g log(1 - p) of one of 0 (Lin et al. 2017)."""

    def __init__(self, alpha: float, gamma: float):
        self.alpha, self.gamma = alpha, gamma

    def value(self, logits: Tensor, target: Target) -> Tensor:
        """See `Term`; the target is 0 or 1."""
        missed = _miss(logits.sigmoid(), target).pow(self.gamma)
        return (self._balance(target) * missed).mul_(_cross_entropy(logits, target))

    def gradients(self, logits: Tensor, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """See `Term`: by way of the cross entropy, and of its factor."""
        probability, balance = logits.sigmoid(), self._balance(target)
        miss = _miss(probability, target)
        by_miss = _cross_entropy(logits, target).mul_(outer).mul_(balance)
        by_miss = by_miss.mul_(miss.pow(self.gamma - 1).mul_(self.gamma))
        if not isinstance(target, float):
            by_miss = by_miss - 2 * target * by_miss  # what the target's class misses is 1 - p
        by_entropy = miss.pow(self.gamma).mul_(balance).mul_(outer).mul_(probability - target)
        return by_entropy, torch.ops.aten.sigmoid_backward(by_miss, probability)

    def _balance(self, target: Target) -> Target:
        return self.alpha * target + (1 - self.alpha) * (1 - target)


def _miss(probability: Tensor, target: Target) -> Tensor:
    if isinstance(target, float) and target == 0:
        return probability
    return probability + target - 2 * probability * target


class QualityTerm:
    """|target - p|^b times cross entropy (Li et al. 2020, Eq. 4)."""

    def __init__(self, beta: float):
        self.beta = beta

    def value(self, logits: Tensor, target: Target) -> Tensor:
        """See `Term`."""
        return (target - logits.sigmoid()).abs().pow(self.beta) * _cross_entropy(logits, target)

    def gradients(self, logits: Tensor, target: Target, outer: Tensor) -> tuple[Tensor, Tensor]:
        """See `Term`: by way of the cross entropy, and of its factor."""
        probability = logits.sigmoid()
        apart = target - probability
        distance = apart.abs()
        by_apart = _cross_entropy(logits, target).mul_(outer).mul_(distance.pow(self.beta - 1).mul_(self.beta))
        by_apart = by_apart.mul_(apart.sign()).neg_()
        by_entropy = distance.pow_(self.beta).mul_(outer).mul_(apart.neg_())
        return by_entropy, torch.ops.aten.sigmoid_backward(by_apart, probability)


class _OneClass(torch.autograd.Function):
    """A term of [..., C] logits whose target is 0 but for one class; targets get no gradient.

    The logits come twice, for the two parts of their gradient. Whoever else uses them adds to it as well, and the sum
    is then the one that torch's own operators give, to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, _: Tensor, labels: Tensor, targets: Tensor, term: Term) -> Tensor:
        ctx.save_for_backward(logits, labels, targets)
        ctx.term = term
        (value,) = _put_right((term.value(logits, 0.0),), labels, lambda *own: (term.value(*own),), logits, targets)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, targets = ctx.saved_tensors
        term: Term = ctx.term
        parts = _put_right(term.gradients(logits, 0.0, gradient), labels, term.gradients, logits, targets, gradient)
        return *parts, None, None, None


def _put_right(
    results: tuple[Tensor, ...],
    labels: Tensor,
    function: Callable[..., tuple[Tensor, ...]],
    logits: Tensor,
    targets: Tensor,
    *more: Tensor,
) -> tuple[Tensor, ...]:
    """`results` [..., C] of `function` where all targets are 0, with those of labels in [0, C) in their places."""
    number = logits.shape[-1]
    if number:
        known = ((labels >= 0) & (labels < number))[..., None]
        place = labels.clamp(0, number - 1)[..., None]
        own = function(logits.gather(-1, place), targets[..., None], *(given.gather(-1, place) for given in more))
        for result, part in zip(results, own, strict=True):
            result.scatter_(-1, place, part.where(known, result.gather(-1, place)))
    return results


def one_class(logits: Tensor, labels: Tensor, targets: Tensor, term: Term) -> Tensor:
    """[..., C] a term of `logits` [..., C]; the target is that of `targets` [...] at a label in [0, C), elsewhere 0."""
    result: Tensor = _OneClass.apply(logits, logits, labels, targets.to(logits), term)
    return result
