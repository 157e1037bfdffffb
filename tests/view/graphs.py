"""Level graphs written by hand, so that the pictures are tested apart from the compiler."""

from __future__ import annotations

from nestflow.diagnostics.core import Source
from nestflow.graph.model import Edge, FlowBox, Instance, LevelGraph, LevelInfo, ParamValue, Texts

ROOT = Instance("model", "root", "model", (), None, (), (), ())
SELF = "model.block.*.self_modifying"


def graph(
    name: str,
    levels: list[LevelInfo],
    edges: list[Edge],
    flows: tuple[FlowBox, ...] = (),
    params: tuple[ParamValue, ...] = (),
    doc: str | None = None,
) -> LevelGraph:
    return LevelGraph(
        name=name,
        source=Source(f"{name}.nl", "nestflow 1\n"),
        params=params,
        inputs=(),
        root=ROOT,
        output=None,
        output_type=None,
        step_levels=(),
        weights=(),
        state=(),
        levels=tuple(levels),
        edges=tuple(edges),
        flows=flows,
        doc=doc,
    )


def hope() -> LevelGraph:
    """HOPE: a self-modifying memory of five networks, then a continuum memory system on the step clock."""
    rate, gate = "dgd(lr = 4.8 / 16 * sigmoid(rates(u)))", "sigmoid(gates(u) + 8)"
    levels = [
        LevelInfo(
            f"{SELF}.{m}",
            m,
            "token",
            1,
            "every token, chunk 16",
            Texts(
                memory=f"mlp(depth = 2, expand = 1, {'residual = true' if i < 3 else 'out = 1'})",
                key="k",
                value=f"{m}(v)",
                query="q",
                objective="l2",
                update=rate,
                retain=gate,
            ),
            count=2,
            heads=4,
            parameters=16_384 if i < 3 else 8_320,
            state=8_192 if i < 3 else 4_224,
            parent=SELF,
            doc="Each memory generates its own target.",
        )
        for i, m in enumerate(["keys", "values", "store", "rates", "gates"])
    ]
    edges = [
        Edge("generates", f"{SELF}.{s}", f"{SELF}.{t}", label)
        for s, label in [("keys", "key"), ("values", "value"), ("rates", "rate"), ("gates", "retain")]
        for t in ["keys", "values", "store", "rates", "gates"]
    ]
    edges += [
        Edge("generates", f"{SELF}.{m}", f"{SELF}.{m}", "value") for m in ["keys", "values", "store", "rates", "gates"]
    ]
    owners = [
        ("fast", 1, 66_048, "block.*.cms.fast.**"),
        ("outer", 1, 240_000, "rest"),
        ("mid", 4, 66_048, ""),
        ("slow", 16, 66_048, ""),
    ]
    for name, every, size, _ in owners:
        memory = "rest(model)" if name == "outer" else f'weights(model, "**.{name}.**")'
        often = "every step" if every == 1 else f"every {every} steps"
        levels.append(
            LevelInfo(
                name,
                name,
                "step",
                every,
                often,
                Texts(
                    memory=memory,
                    objective="cross_entropy(model(tokens), next(tokens))",
                    update="g |> clip_norm(1) |> adamw(lr = cosine(3e-3, warmup = 40))",
                ),
                parameters=size,
            )
        )
        for m, value in [("m", "g"), ("v", "g * g")]:
            levels.append(
                LevelInfo(
                    f"{name}.adamw.{m}",
                    m,
                    "step",
                    every,
                    often,
                    Texts(
                        memory="like(w)",
                        value=value,
                        objective="dot",
                        update=f"gd(1 - beta{1 if m == 'm' else 2})",
                        retain=f"beta{1 if m == 'm' else 2}",
                    ),
                    state=size,
                    parent=name,
                )
            )
            edges.append(Edge("optimises", f"{name}.adamw.{m}", name, ""))
    edges += [
        Edge("context", f"{SELF}.store", "fast"),
        Edge("context", "fast", "mid"),
        Edge("context", "mid", "slow"),
        Edge("context", "slow", "outer", "next block"),
    ]
    edges += [
        Edge("initialises", "outer", f"{SELF}.{m}", "start") for m in ["keys", "values", "store", "rates", "gates"]
    ]
    flows = (
        FlowBox(
            "model",
            "flow",
            1,
            (
                FlowBox("embed", "function", 1),
                FlowBox(
                    "block",
                    "flow",
                    2,
                    (
                        FlowBox("rmsnorm", "function", 1),
                        FlowBox("self_modifying", "level", 1, level=SELF),
                        FlowBox("fast", "flow", 1, level="fast"),
                        FlowBox("mid", "flow", 1, level="mid"),
                        FlowBox("slow", "flow", 1, level="slow"),
                    ),
                ),
                FlowBox("rmsnorm", "function", 1),
            ),
        ),
    )
    params = tuple(ParamValue(k, v, v) for k, v in [("dim", 128), ("depth", 2), ("n_heads", 4), ("vocab", 256)])
    return graph("hope", levels, edges, flows, params, "A self-modifying memory and a continuum memory system.")


def hybrid() -> LevelGraph:
    """Every kind of lane: attention, tokens, periods, steps, a round, and a frozen level."""
    levels = [
        LevelInfo(
            "model.block.*.window",
            "window",
            "token",
            -1,
            "every token, unbounded",
            Texts(
                memory="cache(window = 64)", key="x |> linear |> rope", value="x |> linear", query="x |> linear |> rope"
            ),
            count=4,
            heads=8,
            parameters=65_536,
            state=131_072,
        ),
        LevelInfo(
            "model.block.*.titans",
            "titans",
            "token",
            1,
            "every token, chunk 16",
            Texts(
                memory="mlp(depth = 2)",
                key="x |> linear |> l2norm",
                value="x |> linear",
                query="x |> linear |> l2norm",
                objective="l2",
                update="momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.9)",
                retain="sigmoid(linear(x, 1) + 6)",
            ),
            count=4,
            heads=8,
            parameters=131_072,
            state=65_536,
        ),
        LevelInfo(
            "model.block.*.titans.momentum.s",
            "s",
            "token",
            1,
            "every token",
            Texts(memory="like(w)", value="g", update="gd(1)", retain="beta"),
            count=4,
            state=65_536,
            parent="model.block.*.titans",
        ),
        LevelInfo(
            "model.block.*.lact",
            "lact",
            "token",
            512,
            "every 512 tokens",
            Texts(memory="mlp(depth = 1)", key="k", value="v", query="q", objective="dot", update="muon(0.02)"),
            count=4,
            parameters=40_000,
            state=32_768,
        ),
        LevelInfo(
            "outer",
            "outer",
            "step",
            1,
            "every step",
            Texts(memory="rest(model)", objective="loss", update="muon(lr)"),
            parameters=1_250_000,
        ),
        LevelInfo(
            "outer.muon.m",
            "m",
            "step",
            1,
            "every step",
            Texts(memory="like(w)", value="g", update="gd(1)", retain="0.95"),
            state=1_250_000,
            parent="outer",
        ),
        LevelInfo(
            "meta",
            "meta",
            "round",
            1,
            "every round",
            Texts(memory='weights(model, "head")', update="gd(1)"),
            parameters=512,
        ),
        LevelInfo("frozen", "frozen", "step", 0, "never", Texts(memory='weights(model, "embed")'), parameters=65_536),
    ]
    edges = [
        Edge("context", "model.block.*.window", "model.block.*.titans", "x"),
        Edge("context", "model.block.*.titans", "model.block.*.lact", "x"),
        Edge("generates", "model.block.*.lact", "model.block.*.window", "key"),
        Edge("optimises", "model.block.*.titans.momentum.s", "model.block.*.titans"),
        Edge("optimises", "outer.muon.m", "outer"),
        Edge("initialises", "outer", "model.block.*.titans", "start"),
        Edge("initialises", "outer", "model.block.*.lact", "start"),
        Edge("context", "frozen", "model.block.*.window", "embedding"),
        Edge("initialises", "meta", "outer", "start"),
    ]
    return graph("hybrid", levels, edges)


def hostile() -> LevelGraph:
    """Names and texts that would break out of a careless renderer."""
    nasty = '<script>alert("x")</script>\x1b[31m\x00"]; evil [label="'
    levels = [
        LevelInfo(
            nasty,
            nasty,
            "token",
            1,
            "every token",
            Texts(memory=nasty, key="]]>", update="--> %%{init}%%"),
            doc="</style></svg>",
        ),
        LevelInfo("b&b", "b&b", "step", 3, "every 3 steps", Texts(memory="a < b & c")),
    ]
    edges = [Edge("generates", nasty, "b&b", nasty), Edge("context", "b&b", nasty, "`x`|y|")]
    return graph(nasty, levels, edges, params=(ParamValue(nasty, nasty, nasty),), doc=nasty)


def large(n: int = 60) -> LevelGraph:
    """Many levels with edges in all directions."""
    levels = [
        LevelInfo(
            f"l{i}",
            f"level {i}",
            "token" if i % 3 else "step",
            1 << (i % 5),
            f"every {1 << (i % 5)}",
            Texts(memory="matrix", objective="dot", update="gd(0.1)"),
            parameters=i,
        )
        for i in range(n)
    ]
    kinds = ["context", "generates", "optimises", "initialises"]
    edges = [Edge(kinds[i % 4], f"l{i}", f"l{(i * 7 + 3) % n}", f"e{i}") for i in range(n)]  # type: ignore[arg-type]
    return graph("large", levels, edges)
