"""The operations of the IR: constructors that check shapes and infer types, gathered from the rooms they stand in.

`shapes`: what fits with what; `elementwise`: leaves, elementwise operations, constants that fold; `algebra`:
reductions, products, rows, the shapes of feature axes; `matrices`: square matrices, classes; `ticks`: the token axis,
the heads, losses of a model; `published`: `emit`. A new operation goes to its room and into this list.

A constructor raises `ShapeError` (a plain sentence); whoever knows the place in the text makes a diagnostic of it.

Leaves
  const(value)                      a number
  fill(kind, shape)                 zeros, ones or eye of a feature shape
  slot(name)                        an input of the enclosing flow, level, memory function ("key") or of the model
  weight(path)                      a slow weight; path is relative to the enclosing instance
  theta(tensor)                     a state tensor of the memory whose function this is (relative path)
  position()                        t, from 1, counted from the sequence's start
  head()                            the head's index, from 0
  training()                        true in the forward pass of a step that learns
Leaves in update rules (`like` types are tensors of the shape of w)
  g w w0 w_chunk                    gradient, weight as it stands, at its start, as its chunk began
  n_ticks updates                   numbers: ticks summed in g; updates since the reset, this one included
  slot_old(name) slot_new(name)     a rule memory before and after its own update in this tick
  hyper(name)                       an argument of the rule (Rule.arguments[name])
  fact(name)                        ndim, rows, cols of w (per weight, known when compiling), path (a string)
Elementwise (broadcast): UNARY, BINARY, where(c, a, b)
Reductions over feature axes: sum mean amax (attrs axes: tuple, keep: bool)
Algebra: linear(x, w) x's last axis with w [out, in]; matmul(a, b); transpose(x); outer(a, b); inner(a, b)
Rows (last axis): softmax log_softmax l2norm(x; eps) rmsnorm(x, gain; eps) layernorm(x, gain, bias; eps)
Square matrices and classes: diag diagonal solve matrix_root eigenvectors qr one_hot (see `nestflow.ir.matrices`)
Shape: concat(xs...; last axis) stack(xs...; new last axis) index(x; items) reshape(x; shape)
Images (channels first; nestflow.ir.images): patches(x; p) conv2d(x, w; stride) max_pool(x; k, stride)
  upsample(x; f)
Chance: uniform noise dropout (see `nestflow.ir.chance`)
Tables: embed(i, w)
Look-back: short_conv(x, w [, b]; tail, n) previous(x; tail, n) rope(x; base, reset)
  tail: state path in the instance
  window(x; tail, n) the last n values, own tick first, along a new first feature axis
Heads: split_heads(x; heads) merge_heads(x) grouped(x): a value per group, seen by all heads of it;
  spread(x; heads): the same whole value seen by every head (only where an op needs it said)
Time: next(x)
stop(x)                             constant for every level
each(values...; by, names)          a value for each tensor of a memory, or round of a tick: see nestflow.ir.choices
call(args...; child, names)         a flow or level instance; names are its slots' names in order; ticks: it runs along
                                    an unrolled axis of that length inside each example, from a fresh state
recall(x; memory, mode)             a memory of this level at x. mode: "chunk" state as the chunk began (names, fields),
                                    "objective" (the recall that is differentiated), "return" (by the level's `read`).
                                    Memories without a key (like, vector, scalar) have no argument.
newton_schulz(x; iters, coefficients, eps, dtype)
poly(x, w; p)                       monomials of degree 0 to p
Model-wide (outside flows): cross_entropy(p, y [, mask]; smoothing) one number: the mean over unmasked terms;
  cross_entropy_terms: each of them, 0 where masked;
  outputs(values...; names) several results by name; mean_all(x) mean over features, batch and ticks; sum_features
emit(x, values...; names)           x; the values are published under the names (`emit aux = e`)
emitted(calls...; name)             outside flows: what those calls published under a name, summed over the instances
record(; level, what)               outside flows: the tensors of a level, like w. what: "now"; "before" this tick;
                                    "gradient" that it took in this tick; "copies": as "now", one for each task
average(x)                          a record's mean over its copies
total(x)                            Σ over all tensors of a record: a number
es(e; sigma, pairs, weights)        e, whose gradient in the tensors `weights` (paths) is estimated from its values
Rules only: norm_all(x) l2 norm over all weights of the level; total(x); debias(slot_new, retain; slot);
  schedule(peak, ...; kind, ...) a number by ticks of the level's clock; norm_w(x) the norm of this one tensor;
  norm_rows(x) that of each row (the last axis, kept at size 1)
"""

from __future__ import annotations

# an index of rooms: callers write `ops.linear(…)` and need not know which room has it
from nestflow.ir.algebra import *  # noqa: F403
from nestflow.ir.chance import *  # noqa: F403
from nestflow.ir.elementwise import *  # noqa: F403
from nestflow.ir.matrices import *  # noqa: F403
from nestflow.ir.published import *  # noqa: F403
from nestflow.ir.shapes import *  # noqa: F403
from nestflow.ir.ticks import *  # noqa: F403
