"""The former place of what heads of one's own import from `model.layers`."""

from model.layers import ConvNorm, zero_padding

__all__ = ["ConvNorm", "zero_padding"]
