"""Images: squares as a token axis, convolutions, pooling. Feature axes are [channels, rows, columns]."""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, make
from nestflow.ir.shapes import ShapeError, carried, sized


def image(x: Node, what: str) -> tuple[int, int, int]:
    """Channels, rows and columns of an image. Raises ShapeError where x is none."""
    if len(x.type.shape) != 3:
        raise ShapeError(
            f"{what} takes an image of three axes, channels first, and this is {x.type}",
            "`float[3, 32, 32]`; a grey image: `reshape(1, 28, 28)`",
        )
    if x.type.unrolled:
        raise ShapeError(f"{what} takes an image, and this is one value a patch: {x.type}", "pick one of them: `x[0]`")
    if x.type.heads:
        raise ShapeError(f"{what} takes a whole image, and this is {x.type}", "work on the image before the level")
    channels, rows, columns = x.type.shape
    return channels, rows, columns


def patches(x: Node, p: int, span: Span | None = None) -> Node:
    """The p × p squares of an image, row by row, each as one vector [channels · p²], channel first."""
    channels, rows, columns = image(x, "patches")
    if rows % p or columns % p:
        raise ShapeError(f"squares of {p} × {p} do not fill an image of {rows} × {columns}")
    shape = ((rows // p) * (columns // p), channels * p * p)
    return make("patches", (x,), x.type.with_(shape=shape, unrolled=True), span, p=p)


def conv2d(x: Node, w: Node, stride: int, span: Span | None = None) -> Node:
    """Σ over channels and a k × k window, padded with ⌊(k − 1)/2⌋ zeros; w [n, channels, k, k]."""
    _, rows, columns = image(x, "conv2d")
    n, _, k, _ = w.type.shape
    shape = sized((n, *_slid(rows, columns, k, stride, "conv2d")))
    return make("conv2d", (x, w), carried(x.type, w.type).with_(shape=shape), span, stride=stride)


def max_pool(x: Node, k: int, stride: int, span: Span | None = None) -> Node:
    """The largest of each k × k window; outside the image nothing is larger."""
    channels, rows, columns = image(x, "max_pool")
    shape = (channels, *_slid(rows, columns, k, stride, "max_pool"))
    return make("max_pool", (x,), x.type.with_(shape=shape), span, k=k, stride=stride)


def upsample(x: Node, f: int, span: Span | None = None) -> Node:
    """Every pixel f × f times: the nearest one."""
    channels, rows, columns = image(x, "upsample")
    return make("upsample", (x,), x.type.with_(shape=sized((channels, rows * f, columns * f))), span, f=f)


def _slid(rows: int, columns: int, k: int, stride: int, what: str) -> tuple[int, int]:
    """Places of a k × k window on a padded image."""
    pad = 2 * ((k - 1) // 2)
    if rows + pad < k or columns + pad < k:
        raise ShapeError(f"a window of {k} × {k} of {what} is larger than an image of {rows} × {columns}")
    return (rows + pad - k) // stride + 1, (columns + pad - k) // stride + 1
