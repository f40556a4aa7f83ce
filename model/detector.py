"""Co-DETR: the map of the paper's Figure 4.

    images → backbone → neck → encoder ─┬→ proposals or learned queries ─────────────→ decoder → one-to-one losses
                                        └→ pyramid → auxiliary heads ─┬→ their losses
                                                                      └→ customised queries → the same decoder → losses

At inference everything below the first line is left out.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.backbone import ResNet
from model.boxes import clip_boxes, cxcywh_to_xyxy, size_whwh
from model.config import DetectorConfig
from model.criterion import by_layer, loss_weights, query_losses, set_losses, total_loss
from model.decoder import BoxBranch, Decoder, DecoderOutput, Memory, class_branch
from model.encoder import Encoder
from model.heads import HEADS, instance_names
from model.heads.base import AuxiliaryHead
from model.matcher import match
from model.neck import CoarserLevel, Neck, downsample_mask, level_masks
from model.position import encoder_reference_points, sine_position_encoding, valid_ratios
from model.queries import (
    EncoderProposals,
    LearnedQueries,
    PositiveQueries,
    PositiveSelection,
    ProposalQueries,
    QueryGroup,
    encoder_anchors,
    select_positives,
)
from model.types import Batch, Detections, Positives, Pyramid, Targets, padding_mask


class Detector(nn.Module):
    """The whole model; `config.heads` empty is the plain Deformable-DETR (K = 0)."""

    def __init__(self, config: DetectorConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.official = config.compatibility == "official"
        transformer = config.transformer
        channels = transformer.channels
        self.backbone = ResNet(config.backbone)
        self.neck = Neck(self.backbone.channels, channels, transformer.num_levels)
        finest = self.backbone.strides
        extra = transformer.num_levels - len(finest)
        self.strides = finest + tuple(finest[-1] * 2 ** (i + 1) for i in range(extra))
        self.level_embedding = nn.Parameter(torch.randn(transformer.num_levels, channels))
        self.encoder = Encoder(transformer)
        self.decoder = Decoder(config, num_classes)
        if config.two_stage:
            self.queries: nn.Module = ProposalQueries(
                config.num_queries,
                channels,
                config.mixed_selection,
                class_branch(channels, num_classes),
                BoxBranch(channels),
            )
        else:
            self.queries = LearnedQueries(config.num_queries, channels)
        self.heads = nn.ModuleDict()
        self.positive_queries = nn.ModuleDict()
        if config.heads:
            self.coarser = CoarserLevel(channels)
            strides = (*self.strides, 2 * self.strides[-1])
            for name, head in zip(instance_names(config.heads), config.heads, strict=True):
                module = HEADS[HEADS.name_of(head)](
                    head,
                    channels=channels,
                    num_classes=num_classes,
                    strides=strides,
                    anchor_scale=config.anchor_scale,
                )
                self.heads[name.replace(".", ":")] = module  # module names may not hold dots
            if config.positive_queries:
                self.positive_queries = nn.ModuleDict(
                    {name: PositiveQueries(channels, scalar_embedding=self.official) for name in self.heads}
                )
        self.loss_weights = loss_weights(config, {name: head.loss_weights() for name, head in self.named_heads()})

    @property
    def size_divisor(self) -> int:
        """Batches are padded to a multiple of this, so that every encoder level divides evenly."""
        return self.strides[-1]

    def named_heads(self) -> list[tuple[str, AuxiliaryHead]]:
        """Instance names as in losses and metrics (`atss`, `atss.2`) with their heads."""
        return [(name.replace(":", "."), cast(AuxiliaryHead, head)) for name, head in self.heads.items()]

    # ---- the forward pass, left to right through the figure -------------------------------------------------------

    def encode(self, batch: Batch) -> tuple[Memory, tuple[Tensor | None, ...]]:
        """Backbone, neck and encoder; also the padding masks of the levels (None: nothing is masked)."""
        images, valid_hw = batch.images, batch.valid_hw
        height, width = images.shape[-2:]
        padded = bool((valid_hw != valid_hw.new_tensor([height, width])).any())
        exact = padded and not self.official
        masks: dict[int, Tensor | None] = {}

        def mask_at(stride: int) -> Tensor | None:
            if stride not in masks:
                size = (-(-height // stride), -(-width // stride))
                masks[stride] = level_masks(valid_hw, [size], [stride], exact)[0]
            return masks[stride]

        stages = self.backbone(images, mask_at)
        levels = self.neck(stages, tuple(mask_at(stride) for stride in self.strides))
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        if exact:
            level_padding = [cast(Tensor, mask_at(stride)) for stride in self.strides]
        else:  # the official way: nearest interpolation of the full mask
            full = padding_mask(valid_hw, height, width)
            level_padding = [downsample_mask(full, size) for size in sizes]
        memory = self._encode_levels(levels, level_padding, sizes, padded)
        return memory, tuple(mask_at(s) for s in (*self.strides, 2 * self.strides[-1]))

    def _encode_levels(
        self, levels: list[Tensor], level_padding: list[Tensor], sizes: tuple[tuple[int, int], ...], padded: bool
    ) -> Memory:
        channels = self.config.transformer.channels
        ratios = valid_ratios(level_padding)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        position = torch.cat(
            [
                sine_position_encoding(mask, channels).flatten(2).transpose(1, 2) + embedding
                for mask, embedding in zip(level_padding, self.level_embedding, strict=True)
            ],
            1,
        ).to(tokens.dtype)
        padding = torch.cat([mask.flatten(1) for mask in level_padding], 1) if padded else None
        reference = encoder_reference_points(list(sizes), ratios)
        return Memory(self.encoder(tokens, position, reference, sizes, padding), sizes, padding, ratios)

    def pyramid(self, memory: Memory, valid_hw: Tensor, masks: tuple[Tensor | None, ...]) -> Pyramid:
        """The multi-scale adapter: encoder levels as maps, and one coarser level (paper 3.2)."""
        areas = [h * w for h, w in memory.sizes]
        maps = [
            tokens.transpose(1, 2).unflatten(2, size)
            for tokens, size in zip(memory.tokens.split(areas, 1), memory.sizes, strict=True)
        ]
        coarsest = maps[-1] if masks[-2] is None else maps[-1].masked_fill(masks[-2][:, None], 0.0)
        levels = (*maps, self.coarser(coarsest, masks[-1]))
        return Pyramid(levels, (*self.strides, 2 * self.strides[-1]), valid_hw, masks)

    def initial_queries(self, memory: Memory) -> tuple[QueryGroup, EncoderProposals | None]:
        """The original one-to-one group."""
        if isinstance(self.queries, ProposalQueries):
            return self.queries(memory, exclude_invalid=not self.official)
        return self.queries(memory.tokens.shape[0]), None

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and every unweighted loss by name (see `model.criterion`)."""
        memory, masks = self.encode(batch)
        targets, valid_hw = batch.targets, batch.valid_hw
        losses: dict[str, Tensor] = {}
        group, proposals = self.initial_queries(memory)
        groups, selections = [group], {}
        if len(self.heads) and (self.config.auxiliary_loss or self.config.positive_queries):
            pyramid = self.pyramid(memory, valid_hw, masks)
            for name, head in self.named_heads():
                own, positives = head.train_step(pyramid, targets, with_losses=self.config.auxiliary_loss)
                losses |= {f"{name}/{term}": value for term, value in own.items()}
                if self.config.positive_queries:
                    selections[name] = selection = self._select(positives, pyramid)
                    groups.append(self.positive_queries[name.replace(".", ":")](selection))
        outputs = self.decoder(groups, memory).split([g.content.shape[1] for g in groups])
        losses |= by_layer("decoder", self._one_to_one_losses(outputs[0], targets, valid_hw))
        for (name, selection), output in zip(selections.items(), outputs[1:], strict=True):
            own = query_losses(output, selection.gt_index, targets, valid_hw, selection.weight)
            losses |= by_layer(f"queries.{name}", own)
        if proposals is not None:
            losses |= self._proposal_losses(proposals, memory, targets, valid_hw)
        return total_loss(losses, self.loss_weights), losses

    def _select(self, positives: Positives, pyramid: Pyramid) -> PositiveSelection:
        limits = self.config.min_positive_queries, self.config.max_positive_queries
        return select_positives(positives, pyramid, *limits, official=self.official)

    def _one_to_one_losses(self, output: DecoderOutput, targets: Targets, valid_hw: Tensor) -> dict[str, Tensor]:
        gt_index = match(output.logits, output.boxes_cxcywh, targets, valid_hw, self.config.loss_weights)
        return set_losses(output.logits, output.boxes_cxcywh, gt_index, targets, valid_hw)

    def _proposal_losses(
        self, proposals: EncoderProposals, memory: Memory, targets: Targets, valid_hw: Tensor
    ) -> dict[str, Tensor]:
        """Every token competes; all classes count as one (official)."""
        binary = Targets(targets.boxes_xyxy, targets.labels.clamp(max=0))
        logits, boxes = proposals.logits[None], proposals.boxes_cxcywh[None]
        excluded = None if self.official else encoder_anchors(memory)[2]
        gt_index = match(logits, boxes, binary, valid_hw, self.config.loss_weights, excluded=excluded)
        weight = None if excluded is None else (~excluded).to(logits.dtype)
        losses = set_losses(logits, boxes, gt_index, binary, valid_hw, weight)
        return {f"encoder/{term}": value[0] for term, value in losses.items()}

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(self, batch: Batch, max_detections: int = 100) -> list[Detections]:
        """The decoder's detections: best (query, class) pairs, no NMS. Heads take no part."""
        memory, _ = self.encode(batch)
        group, _ = self.initial_queries(memory)
        return self._best(self.decoder([group], memory), batch.valid_hw, max_detections)

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
            `model.queries.QueryGroup`).

        Raises:
            ValueError: a branch is neither `decoder` nor a head's name; lists the known ones.
        """
        known = ("decoder", *(name for name, _ in self.named_heads()))
        strange = [branch for branch in branches if branch not in known]
        if strange:
            raise ValueError(f"evaluate.branches: no branch {strange[0]!r}; this detector has {', '.join(known)}")
        memory, masks = self.encode(batch)
        group, _ = self.initial_queries(memory)
        output = self.decoder([group], memory)
        found = {}
        if "decoder" in branches:
            found["decoder"] = self._best(output, batch.valid_hw, max_detections)
        if any(branch != "decoder" for branch in branches):
            pyramid = self.pyramid(memory, batch.valid_hw, masks)
            found |= {n: h.detect(pyramid, max_detections) for n, h in self.named_heads() if n in branches}
        last = output.logits[-1:], output.boxes_cxcywh[-1:]
        gt_index = match(*last, batch.targets, batch.valid_hw, self.config.loss_weights)[0]
        assert group.source is not None
        return found, torch.stack([gt_index.int(), group.source], 1)

    def _best(self, output: DecoderOutput, valid_hw: Tensor, max_detections: int) -> list[Detections]:
        scores = output.logits[-1].sigmoid().flatten(1)  # [B, Q * C]
        count = min(max_detections, scores.shape[1])
        best, index = scores.topk(count, 1)
        queries, labels = index // self.num_classes, index % self.num_classes
        boxes = output.boxes_cxcywh[-1].gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = cxcywh_to_xyxy(boxes) * size_whwh(valid_hw).to(boxes)[:, None]
        boxes = clip_boxes(boxes, valid_hw[:, None])
        return [Detections(b, s, c) for b, s, c in zip(boxes, best, labels, strict=True)]
