"""The contract of an auxiliary head: what it takes from the encoder and what it owes in return.

A head sees the encoder's pyramid and the ground truth. It gives (1) its losses, normalised and unweighted, (2) its
positives for the customised queries, (3) detections at evaluation, (4) the score of its positives for the conflict
metric. A new head is one file here and one line in `HEADS`; heads share by calling functions, not by inheritance.

Padding: where `pyramid.masks` holds masks, nothing a head gives may depend on what lies behind them, and candidates
outside an image's valid area are IGNORED. Where it holds None, a head behaves as the official implementation.

A GPU is not waited for: where a head must know how many positives there are, its `train_step` asks (`model.inquiry`),
and one copy answers all heads. A head that reads numbers by itself, as `nonzero` does, is right and makes a GPU wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from model.types import Detections, Positives, Pyramid, Targets


class AuxiliaryHead(nn.Module, ABC):
    """A dense or region head with its own one-to-many label assignment (paper 3.2).

    Built by `HEADS[name](config, channels=..., num_classes=..., strides=..., anchor_scale=...)`, where `strides` are
    those of the pyramid's levels in pixels of the input image and `anchor_scale` multiplies the sides of the head's
    anchors or points (`DetectorConfig.anchor_scale`).
    """

    Config: ClassVar[type[Any]]  # frozen dataclass of the head's settings; of the head's own file, or of configs.py
    needs_masks: ClassVar[bool] = False  # does it learn from `Targets.masks`? They are loaded only then

    @abstractmethod
    def __init__(
        self, config: Any, *, channels: int, num_classes: int, strides: tuple[int, ...], anchor_scale: float = 1.0
    ):
        super().__init__()

    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss within the head; the names are those that `train_step` gives."""

    @abstractmethod
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> tuple[dict[str, Tensor], Positives]:
        """One pass over a batch.

        Returns:
            losses: scalar tensors, normalised and unweighted, connected to the graph even without any ground truth;
                each the sum over the images at hand, divided by `model.share.total` of the normaliser. Empty when
                not `with_losses`, which computes only what the positives need.
            positives: every candidate with its ground truth, for the customised queries.
        """

    @abstractmethod
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Detections of each image after NMS, best first, clipped to the valid area (paper Table 11)."""

    def positives(self, pyramid: Pyramid, targets: Targets) -> Positives:
        """Every candidate with its ground truth, none left out by chance: what the analyses count and score.

        A head whose `train_step` draws a sample says here what it draws from.
        """
        return self.train_step(pyramid, targets, with_losses=False)[1]

    @abstractmethod
    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G] mean pre-sigmoid logit of a ground truth's class over the head's own `positives` of it.

        Not-a-number for a ground truth without a positive and in padding rows. Differentiable in the pyramid;
        proposals and assignments count as constants. A softmax head gives log-odds against the background.
        """
