"""Functions on images: feature axes are [channels, rows, columns]."""

from __future__ import annotations

from typing import Any

from nestflow.ir import images, ops
from nestflow.ir.node import Node
from nestflow.vocabulary.record import word


def _real(x: Node) -> Node:
    return x if x.type.dtype == "float" else ops.binary("mul", ops.const(1.0), x)


@word("patches(x, p)", also="patchify unfold im2col patch_embed PatchEmbed", paper="Dosovitskiy et al. 2021 (ViT)")
def patches(site: Any, x: Any, p: Any) -> Node:
    """An image's p × p squares, row by row, as a token axis of known length: levels tick along it, one patch a tick,
    from a fresh state for each image; `t`, `rope`, `short_conv`, `previous` count patches. To a flow's other functions
    it is feature axis 0: `+ learned(64, dim)`, `mean(axis = 0)`. Each patch is channels · p² numbers, channel first."""
    return images.patches(_real(site.node(x, "patches")), site.size(p, "the side of a patch"), site.span)


@word("conv2d(x, n, k, stride = 1, init = none)", also="Conv2d conv convolution")
def conv2d(site: Any, x: Any, n: Any, k: Any, stride: Any, init: Any) -> Node:
    """Over an image: n channels, each Σ over all channels of a k × k window; padded with ⌊(k − 1)/2⌋ zeros on each
    side, no bias. [channels, rows, columns] gives [n, rows / stride, columns / stride] for odd k."""
    x = _real(site.node(x, "conv2d"))
    channels, _, _ = images.image(x, "conv2d")
    out, side = site.size(n, "the channels of conv2d"), site.size(k, "the window of conv2d")
    shape = (out, channels, side, side)
    w = site.weight("weight", shape, site.init(init, fan_in=channels * side * side))
    return images.conv2d(x, w, site.size(stride, "the stride of conv2d"), site.span)


@word("max_pool(x, k, stride = 1)", also="MaxPool2d max_pool2d maxpool pool pooling")
def max_pool(site: Any, x: Any, k: Any, stride: Any) -> Node:
    """The largest of each k × k window of an image, channel by channel; padded with ⌊(k − 1)/2⌋ on each side. Halve an
    image with `max_pool(2, stride = 2)`."""
    x = _real(site.node(x, "max_pool"))
    return images.max_pool(
        x, site.size(k, "the window of max_pool"), site.size(stride, "the stride of max_pool"), site.span
    )


@word("upsample(x, f)", also="Upsample interpolate resize unpool")
def upsample(site: Any, x: Any, f: Any) -> Node:
    """Every pixel of an image f × f times: the nearest one."""
    return images.upsample(_real(site.node(x, "upsample")), site.size(f, "the factor of upsample"), site.span)
