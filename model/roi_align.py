"""RoIAlign (He et al. 2017) in plain torch.

Bilinear interpolation and the mean over a bin's samples are both separable, so a region of interest is two matrix
products: one matrix of weights per axis, however many samples a bin has.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """Mean of bilinear samples in each bin of each region; ceil(bin side) samples per bin and axis.

    Args:
        feature: [B, D, h, w].
        rois: [R, 5], index of the image and x0, y0, x1, y1 in pixels of the input image.
        output_size: bins per axis.
        spatial_scale: positions of the map per pixel; position i covers [i, i + 1) / spatial_scale.

    Returns:
        [R, D, output_size, output_size]. Samples further than one position outside the map count as 0.
    """
    _, channels, height, width = feature.shape
    corners = rois[:, 1:] * spatial_scale - 0.5
    rows = _weights(corners[:, 1], corners[:, 3], output_size, height).to(feature)  # [R, size, h]
    columns = _weights(corners[:, 0], corners[:, 2], output_size, width).to(feature)
    pooled = feature.new_zeros(len(rois), channels, output_size, output_size)
    images = rois[:, 0].long()
    for image, maps in enumerate(feature):
        own = (images == image).nonzero().squeeze(1)
        lines = rows[own].flatten(0, 1) @ maps.transpose(0, 1).flatten(1)  # [R' * size, D * w]
        lines = lines.view(len(own), output_size, channels, width)
        bins = lines.flatten(1, 2) @ columns[own].transpose(1, 2)  # [R', size * D, size]
        pooled = pooled.index_copy(0, own, bins.view(len(own), output_size, channels, output_size).transpose(1, 2))
    return pooled


@torch.no_grad()
def _weights(start: Tensor, end: Tensor, size: int, length: int) -> Tensor:
    """[R, size, length]: what each position of an axis adds to each bin of [start, end] [R]."""
    bin_side = (end - start) / size
    count = bin_side.ceil()  # samples per bin
    most = int(count.max().clamp(min=1)) if len(count) else 1
    step = torch.arange(most, device=start.device)
    inner = (step + 0.5) * bin_side[:, None] / count.clamp(min=1)[:, None]  # [R, most]
    bins = start[:, None] + torch.arange(size, device=start.device) * bin_side[:, None]  # [R, size]
    samples = bins[..., None] + inner[:, None]  # [R, size, most]
    counted = (step < count[:, None])[:, None] & (samples >= -1) & (samples <= length)
    distance = samples.clamp(0, length - 1)[..., None] - torch.arange(length, device=start.device)
    weights = (1 - distance.abs()).clamp(min=0) * counted[..., None]
    return weights.sum(2) / count.clamp(min=1)[:, None, None]
