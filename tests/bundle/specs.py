"""Small specs that the tests of this folder share."""

BODY = """
flow block(x) {
  x = x + (rmsnorm(x) |> linear |> short_conv(3) |> silu)
  return x + swiglu(rmsnorm(x))
}
flow model(tokens) {
  shared emb = embed(11, dim)
  x = emb(tokens)
  repeat 2 { x = block(x) }
  return rmsnorm(x) @ transpose(emb.weight)
}
"""
HEAD = """nestflow 1
param dim = 8 in [1, 512]
input tokens : int[T] in [0, 11)
output model(tokens)
"""
LM = (
    HEAD
    + BODY
    + """
loss = cross_entropy(model(tokens), next(tokens))
level slow { every 3 steps; memory weights(model, "**.swiglu.**"); objective loss; update adamw(3e-3) }
level outer { every 1 step; memory rest(model); objective loss; update g |> clip_norm(1) |> adamw(3e-3) }
"""
)
TWO_OBJECTIVES = """nestflow 1
input x : float[T, 4]
input goal : float[T, 4]
output model(x)
flow model(x) { return linear(x, 4, name = "first") |> silu |> linear(4, name = "last") }
far = model(x) - goal
level last  { every 1 step; memory weights(model, "last.**"); objective mean(square(far)); update gd(0.1) }
level first { every 1 step; memory weights(model, "first.**"); objective mean(abs(far)); update gd(0.1) }
"""
FROZEN = (
    HEAD
    + BODY
    + """
loss = cross_entropy(model(tokens), next(tokens))
level still { every never; memory weights(model, "emb.**") }
level outer { every 1 step; memory rest(model); objective loss; update gd(0.1) }
"""
)
MEMORY = """nestflow 1
param dim = 8
param chunk = 4
input tokens : int[T] in [0, 11)
output model(tokens)
level titans(x) {
  every 1 token; chunk chunk; heads 2
  memory mlp(depth = 2, expand = 2, residual = true)
  key x |> linear |> short_conv(3) |> l2norm
  value x |> linear |> l2norm
  query x |> linear |> l2norm
  objective l2
  update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.5 * sigmoid(linear(x, 1)))
  retain sigmoid(linear(x, 1) + 6)
  return y |> rmsnorm |> merge_heads |> linear(dim)
}
level swa(x) {
  heads 2
  memory cache
  key x |> linear |> rope
  value x |> linear
  query x |> linear |> rope
  return y |> merge_heads |> linear(dim)
}
flow model(tokens) {
  shared emb = embed(11, dim)
  x = emb(tokens)
  repeat 2 { x = x + titans(rmsnorm(x)); x = x + swa(rmsnorm(x)) }
  return rmsnorm(x) @ transpose(emb.weight)
}
loss = cross_entropy(model(tokens), next(tokens))
level outer { every 1 step; memory weights(model); objective loss; update adamw(3e-3) }
"""
