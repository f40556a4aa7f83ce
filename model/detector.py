"""Co-DETR: the map of the paper's Figure 4.

    images → backbone → neck → encoder ─┬→ proposals → original queries ────────────→ decoder → one-to-one losses
                                        └→ pyramid → auxiliary heads ─┬→ their losses
                                                                      └→ customised queries → the same decoder → losses

Each word but the losses is a part that the configuration chooses (`model/<room>/`, one page of contract each). At
inference everything below the first line is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from model.adapters import ADAPTERS
from model.assign import ASSIGNERS
from model.backbones import BACKBONES
from model.backbones.configs import asked
from model.classification import CLASSIFICATIONS
from model.config import DetectorConfig
from model.criterion import Objective, loss_weights, total_loss
from model.decoders import DECODERS
from model.encoders import ENCODERS
from model.first_weights import draw_official_weights
from model.groups import GROUPS
from model.groups.configs import MainConfig, PositivesConfig
from model.heads import HEADS
from model.inquiry import Inquiry, answer, inquiry, together
from model.layers import Padding
from model.necks import NECKS
from model.postprocess import POSTPROCESSORS
from model.proposals import PROPOSALS
from model.roles import Role, declared_roles
from model.types import Batch, Detections, Memory, PositiveSelection, Pyramid, QueryGroup, Step

if TYPE_CHECKING:
    from model.groups.positives import PositivesGroup
    from model.heads.base import AuxiliaryHead

DECODER = "decoder"  # the branch and the losses of the original queries


class Detector(nn.Module):
    """The whole model; `config.heads` empty is the plain detector (K = 0).

    Args:
        config: the parts and their settings.
        num_classes: C.
    """

    roles: ClassVar[dict[str, str]] = {"backbone": "backbone"}

    def __init__(self, config: DetectorConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.official = config.official
        self.num_proposals = config.num_proposals  # in training
        channels, num_levels = config.transformer.channels, config.transformer.num_levels
        self.assign = ASSIGNERS.build(config.assign, weights=config.loss_weights)
        self.postprocess = POSTPROCESSORS.build(config.postprocess)
        objective = Objective(config, num_classes, CLASSIFICATIONS.build(config.classification), self.assign)
        # The order of what follows decides which random numbers each part draws.
        self.backbone = BACKBONES.build(config.backbone)
        stages = {"in_channels": self.backbone.channels, "in_strides": self.backbone.strides}
        self.neck = NECKS.build(config.neck, **stages, channels=channels, num_levels=num_levels)
        encoder = ENCODERS.choose(ENCODERS.name_of(config.encoder))
        embedding = nn.Parameter(torch.randn(num_levels, channels)) if encoder.has_level_embedding else None
        self.register_parameter("level_embedding", embedding)
        self.encoder = encoder(config.encoder, model=config)
        self.decoder = DECODERS.build(config.decoder, model=config, num_classes=num_classes)
        proposals = config.proposals_or_default
        self.queries = PROPOSALS.build(proposals, num_proposals=self.num_proposals, objective=objective)
        self.main = GROUPS.build(MainConfig(), name=DECODER, objective=objective)
        self.heads, self.positive_queries, self.groups = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        if config.heads:
            self._add_heads(channels)
        if config.heads and config.positive_queries:
            for name, _ in self.named_heads():
                group = GROUPS.build(PositivesConfig(), name=name, objective=objective)
                self.positive_queries[_module_name(name)] = group
        for name, own in zip(GROUPS.instance_names(config.groups), config.groups, strict=True):
            self.groups[_module_name(name)] = GROUPS.build(own, name=name, objective=objective)
        if config.first_weights == "official" and not self.decoder.official_from_the_start:
            draw_official_weights(self.encoder, self.decoder, self.queries, self.positive_queries)
        parts = [*self.query_groups(), self.queries]
        self.loss_weights = loss_weights(
            config, parts, {name: head.loss_weights() for name, head in self.named_heads()}
        )

    @property
    def sees_padding(self) -> bool:
        """Whether what lies beside the smaller images of a batch changes their numbers."""
        return self.official or bool(getattr(self.backbone, "sees_padding", False))

    def _add_heads(self, channels: int) -> None:
        config = self.config
        self.coarser = ADAPTERS.build(config.adapter, channels=channels, strides=self.strides)
        for name, head in zip(HEADS.instance_names(config.heads), config.heads, strict=True):
            self.heads[_module_name(name)] = HEADS.build(
                head,
                channels=channels,
                num_classes=self.num_classes,
                strides=self.coarser.strides,
                anchor_scale=config.anchor_scale,
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the encoder's levels, in pixels of the input image."""
        strides: tuple[int, ...] = self.neck.strides
        return strides

    @property
    def size_divisor(self) -> int:
        """Batches are padded to a multiple of this: every encoder level divides evenly, unless the backbone says."""
        own: int = asked(self.config.backbone, "size_divisor")
        return own or self.strides[-1]

    def named_heads(self) -> list[tuple[str, AuxiliaryHead]]:
        """Instance names as in losses and metrics (`atss`, `atss.2`) with their heads."""
        return [(name.replace(":", "."), cast("AuxiliaryHead", head)) for name, head in self.heads.items()]

    def query_groups(self) -> list[Any]:
        """All groups that train, in the decoder's order: the original queries, the heads' positives, extra ones."""
        return [self.main, *chain(self.positive_queries.values(), self.groups.values())]

    def recompute(self, *, encoder_layers: int = 0, backbone: bool = False) -> None:
        """Compute the first encoder layers and the backbone's stages again in the backward pass (`model.recompute`).

        Raises:
            ValueError: the encoder or the backbone cannot, or has fewer layers; one line.
        """
        for part, name, wanted in (
            (self.encoder, "recomputed_layers", encoder_layers),
            (self.backbone, "recomputes", backbone),
        ):
            if hasattr(part, name):
                setattr(part, name, wanted)
            elif wanted:
                raise ValueError(f"{type(part).__name__} cannot compute its layers again in the backward pass")
        there = len(getattr(self.encoder, "layers", ()))
        if encoder_layers > there:
            raise ValueError(f"the encoder has {there} layers, and {encoder_layers} are to be computed again")

    def parameter_roles(self) -> dict[str, Role]:
        """The role of each parameter for the optimiser, by its name."""
        backbone = "backbone."
        return {
            name: Role(role, self.backbone.lr_depth(name.removeprefix(backbone)) if name.startswith(backbone) else 0)
            for name, role in declared_roles(self)
        }

    # ---- the forward pass, left to right through the figure -------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and every unweighted loss by name (see `model.criterion`)."""
        memory, mask_at = self.encode(batch)
        step = Step(batch, memory, self.queries(memory, self.num_proposals), mask_at)
        losses = self._train_heads(step)
        groups = self.query_groups()
        queries = [group.queries(step) for group in groups]
        outputs = self.decoder(queries, memory).split([own.content.shape[1] for own in queries])
        by_group = zip(groups, queries, outputs, strict=True)
        asked = [inquiry(group.losses, output, own, step) for group, own, output in by_group]
        for own_losses in answer(together([*asked, inquiry(self.queries.losses, step)])):
            losses |= own_losses
        return total_loss(losses, self.loss_weights), losses

    def encode(self, batch: Batch) -> tuple[Memory, Callable[[int], Tensor | None]]:
        """Backbone, neck and encoder; also what gives the padding mask of a stride (see `Padding.mask_at`)."""
        padding = Padding(batch, self.official)
        stages = self.backbone(batch.images, padding.mask_at)
        levels = self.neck(stages, padding.mask_at)
        masks = padding.of_levels(levels, self.strides)
        return self.encoder(levels, masks, padded=padding.any, level_embedding=self.level_embedding), padding.mask_at

    def pyramid(self, memory: Memory, batch: Batch, mask_at: Callable[[int], Tensor | None]) -> Pyramid:
        """The pyramid that the auxiliary heads read (paper 3.2)."""
        height, width = batch.images.shape[-2:]
        pyramid: Pyramid = self.coarser(memory, batch.valid_hw, mask_at, (height, width))
        return pyramid

    def initial_queries(self, memory: Memory) -> QueryGroup:
        """The original queries, as inference has them."""
        number = self.config.num_queries
        queries: QueryGroup = self.queries(memory, number).take(number)
        return queries

    def _train_heads(self, step: Step) -> dict[str, Tensor]:
        """The heads' losses; leaves their pyramid and their positives in `step`."""
        losses: dict[str, Tensor] = {}
        if not len(self.heads) or not (self.config.auxiliary_loss or len(self.positive_queries)):
            return losses
        step.pyramid = self.pyramid(step.memory, step.batch, step.mask_at)
        asked = [self._train_head(name, step) for name, _ in self.named_heads()]
        for (name, _), (own, selection) in zip(self.named_heads(), answer(together(asked)), strict=True):
            losses |= {f"{name}/{term}": value for term, value in own.items()}
            if selection is not None:
                step.positives[name] = selection
        return losses

    def _train_head(self, name: str, step: Step) -> Inquiry[tuple[dict[str, Tensor], PositiveSelection | None]]:
        """A head's losses, and its customised queries if it has any."""
        assert step.pyramid is not None
        head, with_losses = cast("AuxiliaryHead", self.heads[_module_name(name)]), self.config.auxiliary_loss
        given = step.pyramid, step.batch.targets
        losses, positives = yield from inquiry(head.train_step, *given, with_losses=with_losses)
        if not len(self.positive_queries):
            return losses, None
        group = cast("PositivesGroup", self.positive_queries[_module_name(name)])
        selection = yield from inquiry(group.select, positives, step.pyramid)
        return losses, selection

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(self, batch: Batch, max_detections: int = 100) -> list[Detections]:
        """The decoder's detections, best first. Heads take no part."""
        memory, _ = self.encode(batch)
        output = self.decoder([self.initial_queries(memory)], memory)
        found: list[Detections] = self.postprocess(
            output.logits[-1], output.boxes_cxcywh[-1], batch.valid_hw, max_detections
        )
        return found

    @torch.no_grad()
    def detect_branches(
        self, batch: Batch, branches: tuple[str, ...], max_detections: int = 100
    ) -> dict[str, list[Detections]]:
        """Detections of several branches from one forward pass: `decoder`, or a head's name (paper Table 11).

        Raises:
            ValueError: a branch is neither; lists the known ones.
        """
        return self.detect_and_match(batch, branches, max_detections)[0]

    @torch.no_grad()
    def detect_and_match(
        self, batch: Batch, branches: tuple[str, ...], max_detections: int = 100
    ) -> tuple[dict[str, list[Detections]], Tensor]:
        """Detections of several branches, and what the decoder's last layer is matched with.

        Returns:
            detections by branch; [B, 2, Q] int32: the ground truth of each query or BACKGROUND, and its source (see
            `model.types.QueryGroup`).

        Raises:
            ValueError: a branch is neither `decoder` nor a head's name; lists the known ones.
        """
        known = (DECODER, *(name for name, _ in self.named_heads()))
        strange = [branch for branch in branches if branch not in known]
        if strange:
            raise ValueError(f"evaluate.branches: no branch {strange[0]!r}; this detector has {', '.join(known)}")
        memory, mask_at = self.encode(batch)
        group = self.initial_queries(memory)
        output = self.decoder([group], memory)
        logits, boxes = output.logits[-1], output.boxes_cxcywh[-1]
        found = {}
        if DECODER in branches:
            found[DECODER] = self.postprocess(logits, boxes, batch.valid_hw, max_detections)
        if any(branch != DECODER for branch in branches):
            pyramid = self.pyramid(memory, batch, mask_at)
            found |= {n: h.detect(pyramid, max_detections) for n, h in self.named_heads() if n in branches}
        gt_index = self.assign(logits[None], boxes[None], batch.targets, batch.valid_hw)[0]
        assert group.source is not None
        return found, torch.stack([gt_index.int(), group.source], 1)


def _module_name(instance: str) -> str:
    """The name of a head's or group's module, which may not hold dots."""
    return instance.replace(".", ":")
