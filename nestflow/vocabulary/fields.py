"""The words that make statements: fields of a level, declarations, and the names that the language gives.

They stand where a statement begins, so they are no values; `nestflow explain WORD` reads these records.
"""

from __future__ import annotations

from nestflow.vocabulary.record import WORDS, Word

SYNTAX: dict[str, Word] = {}


def _syntax(name: str, kind: str, form: str, doc: str, example: str, also: str = "") -> None:
    SYNTAX[name] = Word(name, form, (), kind, doc, also=tuple(also.split()), example=example)


def _field(name: str, form: str, doc: str, example: str, also: str = "") -> None:
    _syntax(name, "field", form, doc, example, also)


def _statement(name: str, form: str, doc: str, example: str, also: str = "") -> None:
    _syntax(name, "statement", form, doc, example, also)


# --- fields of a level --------------------------------------------------------------------------------------

_field(
    "memory",
    "memory KIND   or   memory NAME : KIND { fields }",
    "What the level stores in: matrix, mlp(...), cache(...), like(w), weights(F, globs), rest(F), or any flow. "
    "A level with several memories names each; a field of the level is the default of theirs.",
    "memory mlp(depth = 2, expand = 4)",
    "state store parameters params",
)
_field(
    "key",
    "key EXPRESSION",
    "What a memory is asked with when it learns: its input in the objective.",
    "key x |> linear |> l2norm",
    "k keys",
)
_field(
    "value",
    "value EXPRESSION",
    "What the memory should answer for the key; a memory without a key takes it as what it tracks.",
    "value x |> linear",
    "v values target",
)
_field(
    "query",
    "query EXPRESSION",
    "What the memory is asked with when it is read: `y` in `return` is the recall at the query.",
    "query x |> linear |> l2norm",
    "q queries",
)
_field(
    "weight",
    "weight EXPRESSION",
    "A number that multiplies the gradient of a tick; a record (`{gate: r1, up: r2}`) has one for each tensor. "
    "Default: 1.",
    "weight sigmoid(linear(x, 1))",
)
_field(
    "when",
    "when CONDITION",
    "At ticks where it is false nothing is learned from. Default: true.",
    "when norm(M(key) - value) > 0.1",
)
_field(
    "objective",
    "objective dot | l2 | huber(delta) | lp(p) | EXPRESSION",
    "What the level minimises. `dot` is minus the inner product of recall and value, `l2` half their squared distance; "
    "on the step clock it is a loss over the model's outputs. With a key it must be written.",
    "objective l2",
    "loss criterion cost",
)
_field(
    "update",
    "update EXPRESSION",
    "The step that is added to the memory; `g` is the gradient, summed since the last update. `adam(1e-3)` is short "
    "for `g |> adam(1e-3)`, and the same optimisers serve on every clock.",
    "update g |> clip_norm(1) |> adamw(3e-4)",
    "optimizer optimiser rule optim",
)
_field(
    "retain",
    "retain GATE",
    "What multiplies the memory before the step is added: 1 keeps everything, 0 forgets. `decay_first(gate)` decays "
    "before the error is taken. Default: 1.",
    "retain sigmoid(linear(x, 1) + 6)",
    "forget decay forget_gate gate weight_decay",
)
_field(
    "project",
    "project EXPRESSION",
    "What each of the memory's tensors becomes after an update, in `w`, the tensor that retain and the step have made: "
    "`ball(10)` is short for `w |> ball(10)`. `w0` is its start. Default: nothing.",
    "project w * norm(w0, axis = -1) / norm(w, axis = -1)",
    "constraint constrain",
)
_field(
    "every",
    "every N tokens | N steps | never",
    "How often the level learns; in between, gradients are summed. Default: every 1 token where an input has the token "
    "axis, every 1 step on weights. `every never` freezes.",
    "every 4 steps",
    "period frequency freeze frozen interval",
)
_field(
    "chunk",
    "chunk C",
    "Errors are taken at the state that the current C ticks began with, so that a chunk is computed at once. "
    "A multiple of `every`, which is its default.",
    "chunk 16",
    "chunk_size block_size mini_batch",
)
_field(
    "rounds",
    "rounds N",
    "How many updates one tick makes. Default: 1. Lists of n as key, value, weight or rate make n rounds too; round j "
    "takes the j-th of each.",
    "rounds 5",
    "inner_steps iterations",
)
_field(
    "heads",
    "heads H",
    "Every expression of the level is evaluated once per head, with weights and a memory of its own; `merge_heads` "
    "joins the results. Default: none, the level is one whole.",
    "heads 4",
    "n_heads num_heads nhead",
)
_field(
    "read",
    "read after | before | chunk_start",
    "Which state a recall in `return` sees: after this tick's update, before it, or as the chunk began. "
    "Default: after.",
    "read before",
)
_field(
    "init",
    "init zeros | ones | eye | NUMBER | learned | learned(DISTRIBUTION) | DISTRIBUTION | EXPRESSION | MEMORY | LEVEL",
    "How the memory starts. Default: zeros for a matrix, `learned` (a slow weight) for networks. A bare distribution "
    "is no weight: drawn anew at each reset and for each copy, a function of seed, place, step, row and tick. An "
    "expression is of numbers, slow weights, and `zeros`, `ones`, `eye`, `learned` in the shape of the tensor. A "
    "memory of the same level: its start, and at each `reset` the state that it has come to. Weights that learn "
    "while the module reads start as the model does, or from the state of a slower such level.",
    "init learned(normal(0.02))",
    "start initial initialize",
)
_field(
    "gradient",
    "gradient through | stop",
    "Whether slower levels' gradients pass through this memory's updates, or take its steps as constants. "
    "Default: through.",
    "gradient stop",
    "backprop",
)
_field(
    "return",
    "return EXPRESSION",
    "What the level gives back; `y` is the recall at the query. Default: merge_heads(y).",
    "return y |> rmsnorm |> merge_heads |> linear(dim)",
)
_field(
    "reset",
    "reset each(sequence) | each(chunk) | each(MEMORY) | where(CONDITION) | never",
    "When the memory goes back to its start: with each sequence (the default on the token clock), at the first tick of "
    "each chunk, at the first tick after each update of another memory of the level, or where a condition holds. "
    "`never` needs `per stream` or `per model`.",
    "reset each(chunk, keep = rule)",
)
_field(
    "per",
    "per sequence | stream | model | task | worker(NUMBER)",
    "How many copies there are: one for each sequence (the default); one for each stream, which goes on when a new "
    "sequence begins in its row; or one for the model, which all rows write and the module keeps from call to call "
    "(both with `reset never`). Of a level without slots: one for each task (row of the batch), inside a step; or one "
    "for each of a number of workers, which live on and learn from their part of the batch.",
    "per stream",
)
_field("keep", "keep rule", "A reset spares the state of the update rule.", "keep rule")

# --- fields of an optimiser ---------------------------------------------------------------------------------

_field(
    "step",
    "step EXPRESSION",
    "In an optimiser: what is added to the weight. `w` after it is the new weight.",
    "step -lr * debias(m) / (sqrt(debias(v)) + eps)",
)
_field("set", "set EXPRESSION", "In an optimiser: what the weight becomes.", "set (1 - beta) * z + beta * x")
_field(
    "eval",
    "eval EXPRESSION",
    "In an optimiser: the weight that the module uses when it is not training.",
    "eval x",
)

# --- statements ---------------------------------------------------------------------------------------------

_statement(
    "use",
    "use SPEC   or   use NAME of SPEC as NAME",
    "Brings in the definitions of a shipped spec, or of a file. Shipped optimisers and blocks are known without it.",
    "use titans of titans",
    "import include from",
)
_statement(
    "param",
    "param NAME = DEFAULT in [LOW, HIGH]",
    "A setting of the spec, set from outside with `--set NAME=VALUE` or `compile(..., NAME = VALUE)`. What it may be "
    "stands after `in`: `[` and `]` include an end, `(` and `)` do not, `inf` is none; `in {2, 4}` names values. Slots "
    "of flows, levels and optimisers take bounds too: `depth = 2 in [1, 16]`.",
    "param dim = 256 in [1, 65536]",
    "const hyperparameter parameter",
)
_statement(
    "input",
    "input NAME : TYPE[T, SIZE] in [LOW, HIGH)",
    "An input of the model: int, float or bool. T is the token axis; the batch axis is never written.",
    "input tokens : int[T] in [0, vocab)",
)
_statement("output", "output EXPRESSION", "What the compiled module computes.", "output model(tokens)", "outputs")
_statement(
    "level",
    "level NAME(SLOTS) { fields, names, return }",
    "A memory with its context, objective, update and frequency. With slots it is called in flows and ticks by tokens; "
    "without, it learns weights.",
    "level outer { every 1 step; memory weights(model); objective loss; update adamw(3e-4) }",
    "module layer class",
)
_statement(
    "flow",
    "flow NAME(SLOTS) { names, shared, repeat, if, return }",
    "A function of the features at one tick. Its statements run from top to bottom; each call has weights of its own.",
    "flow block(x) { x = x + mlp(rmsnorm(x)); return x }",
    "def fn func function",
)
_statement(
    "optimizer",
    "optimizer NAME(SLOTS) { names, memories, step }",
    "An update rule: its memories take the gradient `g` as their context, and `step` is what is added to the weight.",
    "optimizer momentum(lr, beta = 0.9) { memory m : like(w) { value g; update gd(1); retain beta }; step -lr * m }",
    "optimiser",
)
_statement(
    "shared",
    "shared NAME = FUNCTION(...)",
    "Names one instance for many calls: they share its weights, and each call that learns or looks back has a state of "
    "its own. `m.read(x)` of a shared level only recalls, from the state that the chunk of its one call began with.",
    "shared emb = embed(vocab, dim)",
)
_statement(
    "repeat",
    "repeat N as i { statements }",
    "Runs the statements N times, each time with weights of their own; i counts from 0.",
    "repeat depth { x = block(x) }",
    "loop times range",
)
_statement(
    "for",
    "for NAME in [ITEMS] { statements }",
    "Writes the statements once for each item, which replaces the name, and `{NAME}` inside names and strings.",
    "for m in [keys, values] { memory m : matrix { key k; value m(v) } }",
    "foreach while",
)
_statement(
    "if",
    "if CONDITION { statements } else { statements }",
    "A choice made when compiling. At each tick: `a if c else b`.",
    "if depth > 4 { x = rmsnorm(x) }",
    "elif switch match",
)
_statement("assert", 'assert CONDITION, "message"', "Must hold when compiling.", "assert dim % n_heads == 0", "require")
_statement("emit", "emit NAME = EXPRESSION", "Publishes a value of a flow or level.", "emit aux = mean(x)", "log print")
_statement(
    "clock", "clock NAME = N steps", "A clock that another clock, or the caller, ticks.", "clock round = 500 steps"
)
_statement(
    "extern",
    "extern NAME(inputs) : type",
    "A network of yours, an `nn.Module`: levels own its weights, and with its inputs named it is called.",
    "extern net",
)
_statement(
    "extends",
    "extends SPEC { changes }",
    "Derives a spec: a named thing inside must exist; its fields replace, its other statements add.",
    'extends "titans.nl" { level titans { chunk 64 } }',
    "inherit override",
)
_statement(
    "execution",
    "execution { dtype TYPE; device NAME; compile BOOL; checkpointing HOW; block TICKS; microbatch N; backend NAME; "
    "capture BOOL }",
    "How it is computed, never what: nothing in it changes a result beyond rounding. What `nestflow.compile` is told "
    "comes first, then a file of settings (`execution = FILE`, `--execution FILE`), then the spec.",
    "execution { dtype float32; checkpointing auto }",
)

# --- settings of `execution` --------------------------------------------------------------------------------


def _setting(name: str, form: str, doc: str, example: str) -> None:
    _syntax(name, "setting", form, doc, example)


_setting(
    "dtype",
    "dtype float32 | float64 | bfloat16 | float16",
    "The type of weights, states and float inputs. Default float32.",
    "dtype bfloat16",
)
_setting("device", "device NAME", 'Where the weights lie: `cpu`, `cuda`, `"cuda:1"`. Default cpu.', "device cpu")
_setting(
    "compile",
    "compile true | false",
    "Pieces of a loop are run by `torch.compile`, forward and backward. The first steps take a minute or more; a loop "
    "whose piece asks for the number of its tick runs as it stands. Default false.",
    "compile true",
)
_setting(
    "checkpointing",
    "checkpointing none | auto | N",
    "What a loop keeps for the backward pass: everything (none), or the state that each segment of N pieces begins "
    "with; the segment runs again in the backward pass. auto: about the root of their number. Default none.",
    "checkpointing auto",
)
_setting(
    "block",
    "block TICKS",
    "Ticks of a piece, 1 to 1024, where the memories of a level leave that open. Default 64, and 32 with a delta rule.",
    "block 32",
)
_setting(
    "microbatch",
    "microbatch N",
    "A step of the bundle takes its gradients from N parts of the batch's rows, one after the other, and sums them by "
    "their share of the rows: the whole batch's, for objectives that are means over rows. Default 1.",
    "microbatch 4",
)
_setting(
    "backend",
    "backend auto | torch | whole | triton | fla",
    "What computes a memory that is one matrix: the loop in torch; all ticks of a call as one operation of torch, "
    "which `torch.compile` does not unroll (whole); or kernels for a CUDA device (Triton, flash-linear-attention). "
    "`nestflow explain SPEC` says where one does not take a memory, and why. Default auto: Triton on a CUDA device "
    "where it is installed, else torch.",
    "backend torch",
)
_setting(
    "capture",
    "capture true | false",
    "The gradients of a step of the bundle are captured as a CUDA graph, once for each shape of a batch, and replayed: "
    "one launch. On a CUDA device, for steps that do the same work each time. Default false.",
    "capture false",
)

# --- given names --------------------------------------------------------------------------------------------

GIVEN: dict[str, tuple[str, str]] = {
    "y": ("the recall at `query`", "in the `return` of a level"),
    "M": ("the memory whose field it is, as a function; bare, its state (of one tensor)", "in the fields of a memory"),
    "head": ("the head's index, from 0", "in a level with `heads`"),
    "t": ("the tick, from 1 (in `update`, `retain` and optimisers: the update)", "in flows, fields and optimisers"),
    "g": (
        "the gradient, summed since the last update; `m.g`: the one that the memory m takes in this tick",
        "in `update` and in optimisers; `m.g` in `return`, `emit` and other memories' fields",
    ),
    "n_ticks": ("how many ticks `g` sums", "in `update` and in optimisers"),
    "w": ("the weight as it stands", "in `update` and in optimisers"),
    "w0": ("the weight at its start", "in `update` and in optimisers"),
    "w_chunk": ("the weight as its chunk began", "in `update` and in optimisers"),
    "w_in": ("the inputs of the weight", "in `gram(w_in)`, in `update` and in optimisers"),
    "age": ("how many ticks back a pair is", "in the `weight` of `windowed`"),
    "training": ("true in the forward pass of a step that learns", "in flows and fields"),
}
"""Names that have a meaning of their own: what each is, and where it stands. They cannot be hidden."""

for _name, (_what, _where) in GIVEN.items():
    _syntax(_name, "given name", _name, f"{_what[0].upper()}{_what[1:]}. It stands {_where}.", "")

# --- what other libraries call it ---------------------------------------------------------------------------

SLOTS_ALSO: dict[str, str] = {
    "learning_rate": "lr",
    "rate": "lr",
    "eta": "lr",
    "step_size": "lr",
    "alpha": "lr",
    "momentum": "beta",
    "beta_1": "beta1",
    "beta_2": "beta2",
    "betas": "beta1",
    "epsilon": "eps",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "out_features": "n",
    "features": "n",
    "dim_out": "out",
    "n_layers": "depth",
    "layers": "depth",
    "num_layers": "depth",
    "hidden_dim": "hidden",
    "hidden_size": "hidden",
    "d_ff": "hidden",
    "expansion": "expand",
    "mult": "expand",
    "activation": "act",
    "nonlinearity": "act",
    "use_bias": "bias",
    "kernel_size": "n",
    "kernel": "n",
    "window_size": "window",
    "max_norm": "c",
    "dim": "axis",
    "axes": "axis",
    "num_embeddings": "vocab",
    "embedding_dim": "dim",
    "warmup_steps": "warmup",
    "total_steps": "total",
    "t_max": "total",
    "is_causal": "causal",
    "label_smoothing": "smoothing",
}
"""Slots by the names that other libraries give them, for `help:` only."""


def words_for(name: str) -> list[Word]:
    """nestflow's words for what other libraries call by that name."""
    return [w for w in (*WORDS.values(), *SYNTAX.values()) if name in w.also]


def word_for(name: str, kind: str | None = None) -> Word | None:
    """nestflow's word for what other libraries call by that name, or None; kind: of the words of this kind first."""
    found = words_for(name)
    return next((w for w in found if w.kind == kind), found[0] if found else None)
