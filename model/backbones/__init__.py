"""The backbones by name: a new one is one file in this folder and one line in `BACKBONES` (docs/add-a-part.md).

A backbone is built from its `Config` alone and has

- `channels` and `strides`: of the stages that it returns, fine to coarse; strides are powers of two;
- `forward(images, mask_at) → stages`: images [B, 3, H, W] to stages [B, C_i, ceil(H / stride), ceil(W / stride)];
  `mask_at(stride)` gives the padding mask [B, h, w] bool (True = padding) of a stride, or None where nothing is masked.
  With masks, a stage is zero behind its own, and at a valid position it is what the image alone would give (unless
  `sees_padding`);
- `lr_depth(name) → int`: how many layers lie between a parameter of this name and the output (0: the last one), for
  learning rates that fall from layer to layer; it never rises from one of `named_parameters` to the next;
- perhaps `sees_padding: bool`: padding takes part, as in the official code. Then only the zeros behind the mask are
  owed, and an image's numbers depend on how much padding there is;
- perhaps `recomputes: bool`, whether its stages are computed again in the backward pass (`model.recompute`); a training
  may set it.

Its `Config` may have what stands in `configs.ASKED`, such as `weights`, the path of a file of pretrained weights, whose
content is part of a trial's identity; a function `check_weights(config)` beside the class says beforehand whether it
fits.
"""

from __future__ import annotations

from model.backbones import configs
from model.parts import Parts

BACKBONES = Parts(
    __name__,
    "backbone",
    {
        "resnet": "model.backbones.resnet:ResNet",
        "efficientnet_lite0": "model.backbones.efficientnet_lite:EfficientNetLite0",
        "swin": "model.backbones.swin:Swin",
        "vit": "model.backbones.vit:ViT",
        "auto": "model.backbones.auto:AutoBackbone",
    },
    {
        "resnet": configs.ResNetConfig,
        "efficientnet_lite0": configs.EfficientNetLiteConfig,
        "swin": configs.SwinConfig,
        "vit": configs.ViTConfig,
        "auto": configs.AutoBackboneConfig,
    },
)
