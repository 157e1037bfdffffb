"""Wrong specs: most are one page of Titans with one thing changed; the rest are texts, files and dicts of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOOD = """nestflow 1
param dim = 32 in [1, 65536]
param n_heads = 2
param vocab = 256
input tokens : int[T] in [0, vocab)
output model(tokens)
level titans(x) {
  every 1 token
  chunk 4
  heads n_heads
  memory mlp(depth = 2, expand = 2)
  key x |> linear |> l2norm
  value x |> linear |> l2norm
  query x |> linear |> l2norm
  objective l2
  update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.5)
  retain sigmoid(linear(x, 1) + 6)
  return y |> merge_heads |> linear(dim)
}
flow block(x) { return x + titans(rmsnorm(x)) }
flow model(tokens) {
  shared emb = embed(vocab, dim)
  x = emb(tokens)
  repeat 2 { x = block(x) }
  return rmsnorm(x) @ transpose(emb.weight)
}
loss = cross_entropy(model(tokens), next(tokens))
level outer { every 1 step; memory weights(model); objective loss; update adamw(1e-3) }
"""


@dataclass(frozen=True)
class Bad:
    """What `nestflow.check` is given. `make` gets an empty folder, and may put files there."""

    name: str
    make: Callable[[Path], Any]
    params: tuple[tuple[str, Any], ...] = ()


def _changed(old: str, new: str) -> Callable[[Path], str]:
    if old not in GOOD:
        raise ValueError(f"not in the good spec: {old}")
    return lambda folder: GOOD.replace(old, new, 1)


def _text(text: str) -> Callable[[Path], str]:
    return lambda folder: text


def _file(name: str, data: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return str(folder / name)

    return make


# (what is wrong, the line as it should be, the line as it is)
CHANGES: list[tuple[str, str, str]] = [
    # typos
    ("misspelt field", "objective l2", "objectve l2"),
    ("misspelt function", "rmsnorm(x)) }", "rmsnrm(x)) }"),
    ("misspelt update", "momentum(lr", "momentun(lr"),
    ("misspelt param", "  heads n_heads", "  heads nheads"),
    ("misspelt flow", "x = block(x)", "x = blok(x)"),
    ("misspelt keyword", "level outer {", "levle outer {"),
    ("misspelt slot of a block", "expand = 2)", "expnad = 2)"),
    ("misspelt slot of an optimiser", "beta = 0.5", "betta = 0.5"),
    ("word of another library", "memory mlp(depth = 2, expand = 2)", "memory MLP(depth = 2, expand = 2)"),
    ("field of another library", "objective l2\n  update momentum", "loss l2\n  update momentum"),
    ("python spelling of true", "mlp(depth = 2,", "mlp(residual = True, depth = 2,"),
    ("power of python", "0.1 * sigmoid", "0.1 ** sigmoid"),
    ("colon after a field", "  chunk 4", "  chunk: 4"),
    ("depth of a block out of bounds", "depth = 2, expand", "depth = 99, expand"),
    ("missing closing bracket", "value x |> linear |> l2norm", "value x |> linear( |> l2norm"),
    ("missing closing brace", "linear(dim)\n}", "linear(dim)\n"),
    ("missing pipe", "key x |> linear |> l2norm", "key x linear |> l2norm"),
    ("pipe from a bare sum", "key x |> linear", "key x + x |> linear"),
    ("two statements on a line", "every 1 token\n  chunk 4", "every 1 token chunk 4"),
    ("field given twice", "  chunk 4", "  chunk 4\n  chunk 8"),
    ("field in the wrong place", "  objective l2", "  objective l2\n  lr 0.1"),
    ("no version", "nestflow 1\n", ""),
    ("version of the future", "nestflow 1", "nestflow 99"),
    # units and clocks
    ("no unit", "every 1 token", "every 1"),
    ("unknown unit", "every 1 token", "every 1 fortnight"),
    ("step clock inside a flow", "every 1 token", "every 1 step"),
    (
        "weights that nobody keeps",
        "level outer { every 1 step",
        "level outer { reset never; every 1 token",
    ),
    ("chunk is no multiple of every", "every 1 token", "every 3 tokens"),
    ("chunk of zero", "chunk 4", "chunk 0"),
    ("chunk of a fraction", "chunk 4", "chunk 2.5"),
    ("chunk that depends on the token", "chunk 4", "chunk x"),
    ("negative period", "every 1 step", "every -1 step"),
    ("period of zero", "every 1 step", "every 0 steps"),
    # shapes
    ("heads do not divide the width", "param n_heads = 2", "param n_heads = 5"),
    ("no heads", "param n_heads = 2", "param n_heads = 0"),
    ("value of another width than the memory", "mlp(depth = 2, expand = 2)", "mlp(depth = 2, out = 3)"),
    ("query of another width than the key", "query x |> linear |> l2norm", "query x |> linear(5) |> l2norm"),
    ("a sum of two widths", "return x + titans(rmsnorm(x))", "return x + linear(titans(rmsnorm(x)), 7)"),
    ("a product of two widths", "@ transpose(emb.weight)", "@ emb.weight"),
    ("per head and whole", "return y |> merge_heads |> linear(dim)", "return x + y"),
    ("whole key under heads", "key x |> linear |> l2norm", "key x |> l2norm"),
    ("width of a fraction", "linear(dim)\n}", "linear(dim / 3)\n}"),
    ("width of zero", "linear(dim)\n}", "linear(0)\n}"),
    ("width of a name", "linear(dim)\n}", 'linear("wide")\n}'),
    ("index outside", "x = emb(tokens)", "x = emb(tokens)[99]"),
    ("gate of the wrong width", "retain sigmoid(linear(x, 1) + 6)", "retain sigmoid(linear(x, 5) + 6)"),
    ("division by zero", "chunk 4", "chunk 4 / 0"),
    ("a float where an int is wanted", "int[T] in [0, vocab)", "float[T]"),
    ("a key of nothing", "key x |> linear |> l2norm", "key []"),
    ("a convolution by another name", "x = emb(tokens)", "x = conv(emb(tokens), 3)"),
    ("a chance above 1", "x = emb(tokens)", "x = emb(tokens) * bernoulli(2)"),
    ("a decay that is none", "adamw(1e-3)", "adamw(1e-3, beta1 = 2)"),
    # names and circles
    ("names in a circle", "key x |> linear |> l2norm", "a = b + x\n  b = a + x\n  key a |> linear |> l2norm"),
    ("a flow that calls itself", "return x + titans(rmsnorm(x))", "return block(x)"),
    ("a loss of itself", "loss = cross_entropy(", "loss = loss + cross_entropy("),
    ("a name given twice", "  objective l2", "  a = x\n  a = x + 1\n  objective l2"),
    ("a flow given twice", "flow block(x) {", "flow block(x) { return x }\nflow block(x) {"),
    ("a given name hidden", "  x = emb(tokens)", "  t = emb(tokens)\n  x = emb(tokens)"),
    ("a param below its bound", "param dim = 32", "param dim = 0"),
    ("a param of text", "param dim = 32 in [1, 65536]", 'param dim = "wide"'),
    ("too few arguments", "embed(vocab, dim)", "embed(vocab)"),
    ("too many arguments", "rmsnorm(x))", "rmsnorm(x, 1, 2, 3))"),
    ("a call of a number", "x = emb(tokens)", "x = vocab(tokens)"),
    ("a flow without return", "flow block(x) { return x", "flow block(x) { z = x"),
    ("a weight that is not there", "emb.weight", "emb.wieght"),
    ("a shared thing that is no instance", "shared emb = embed(vocab, dim)", "shared emb = 3"),
    ("use of what is not shipped", "nestflow 1\n", "nestflow 1\nuse optimizers.adamm\n"),
    ("a type that is not there", "int[T]", "integer[T]"),
    ("a clock that is not there", "int[T]", "int[Q]"),
    # levels
    ("no memory", "  memory mlp(depth = 2, expand = 2)\n", ""),
    ("no key", "  key x |> linear |> l2norm\n", ""),
    ("no query", "  query x |> linear |> l2norm\n", ""),
    ("no objective", "  objective l2\n  update", "  update"),
    ("no update", "  update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.5)\n", ""),
    ("no value under l2", "  value x |> linear |> l2norm\n", ""),
    ("an objective without the memory", "objective l2\n  update m", "objective inner(value, value)\n  update m"),
    ("an update that is no step", "update adamw(1e-3)", "update 3"),
    ("a start at zeros that never learns", "  objective l2\n", "  objective l2\n  init zeros\n"),
    ("weights of a flow that is not there", "weights(model)", "weights(modle)"),
    ("a glob that matches nothing", "weights(model)", 'weights(model, "**.attention.**")'),
    ("a range of a glob with a dash", "weights(model)", 'weights(model, "block.[0-1].**")'),
    (
        "two owners of a weight",
        "level outer {",
        'level more { every 1 step; memory weights(model, "block.**"); objective loss; update gd(0.1) }\nlevel outer {',
    ),
    (
        "two owners of the rest",
        "level outer {",
        "level more { every 1 step; memory rest(model); objective loss; update gd(0.1) }\n"
        "level less { every 2 steps; memory rest(model); objective loss; update gd(0.1) }\nlevel outer {",
    ),
    ("a power below 1", "  objective l2\n", "  objective lp(0)\n"),
    ("a delta of nothing", "  objective l2\n", "  objective huber(0)\n"),
    ("a warm-up before the start", "adamw(1e-3)", "adamw(cosine(1e-3, warmup = -3, total = 9))"),
    ("a run of no steps", "adamw(1e-3)", "adamw(cosine(1e-3, total = 0))"),
    (
        "a mean that is divided by nothing",
        "adamw(1e-3) }",
        "mine(1e-3) }\noptimizer mine(lr) { memory m : like(w) { value g; update gd(1) }; step -lr * debias(m) }",
    ),
    ("a period of ages", "every 1 step", "every 1_000_000_000_000 steps"),
    ("weights that nobody owns", "weights(model)", 'weights(model, "block.**")'),
    ("a level as a memory", "memory mlp(depth = 2, expand = 2)", "memory outer"),
    ("a key that looks ahead", "key x |> linear |> l2norm", "key next(x) |> linear |> l2norm"),
    ("a misspelt return of a flow", "return x + titans(rmsnorm(x))", "retrun x + titans(rmsnorm(x))"),
    (
        "a read of nothing",
        "return x + titans(rmsnorm(x))",
        "shared m = titans; h = m.read(); return x + m(rmsnorm(x)) + h",
    ),
    ("a read that is not there", "  objective l2\n", "  objective l2\n  read sometimes\n"),
    ("no output", "output model(tokens)\n", ""),
    ("an output of a name that is not there", "output model(tokens)", "output mdl(tokens)"),
    ("a loss of bytes against words", "next(tokens))", "next(model(tokens)))"),
    ("something of a later version", "  objective l2\n", "  objective l2\n  gradient truncate(4)\n"),
    # hostile
    ("repeat a thousand million times", "repeat 2 {", "repeat 1_000_000_000 {"),
    ("a tower of repeats", "repeat 2 { x = block(x) }", "repeat 9999 { repeat 9999 { repeat 9999 { x = block(x) } } }"),
    ("a tower of powers", "linear(dim)\n}", "linear(9 ^ 9 ^ 9 ^ 9)\n}"),
    ("a width of a thousand million", "linear(dim)\n}", "linear(1_000_000_000_000)\n}"),
    ("a range with nothing in it", "in [0, vocab)", "in [7, 7)"),
    ("a value that doubles sixty times", "x = emb(tokens)", "x = emb(tokens)\n  repeat 60 { x = concat(x, x) }"),
    ("a number with a thousand digits", "chunk 4", "chunk " + "9" * 1000),
    ("a number too large for a float", "beta = 0.5", "beta = 1e999"),
    ("python in a string", "weights(model)", "weights(model, \"__import__('os').system('touch pwned')\")"),
    ("python without leave", "x = emb(tokens)", 'x = py("os:system")(tokens)'),
    ("attributes of python", "emb.weight", "emb.__class__.__mro__"),
    ("a dunder name", "flow block(x) { return x", "flow __init__(x) { return x }\nflow block(x) { return x.__dict__"),
    ("a name of letters that look alike", "x = block(x)", "x = blосk(x)"),
    ("an invisible letter", "objective l2", "objective l2\u200b"),
    ("a text that turns around", "objective l2", "objective l2 \u202e"),
    ("a name of ten thousand letters", "x = block(x)", "x = " + "b" * 10_000 + "(x)"),
    ("a glob made to be slow", "weights(model)", 'weights(model, "' + "**.*" * 200 + '")'),
    ("terminal codes", "objective l2", "objective \x1b[31ml2"),
]

NET = "nestflow 1\ninput x : float[T, 8]\nextern net(x) : float[T, 8]\n"
LEVEL = "output m(x)\nlevel m(x) { memory matrix; key x; value x; query x; objective l2; update gd(0.1) }\n"

TEXTS: list[tuple[str, str]] = [
    ("nothing", ""),
    ("spaces", "   \n\n  "),
    ("a name that is not shipped", "hoppe"),
    ("a folder of a name", "architectures.hopes"),
    ("prose", "Please train a model for me.\n"),
    ("python", "import torch\nmodel = torch.nn.Linear(3, 4)\n"),
    ("ten thousand open brackets", "nestflow 1\na = " + "(" * 10_000 + "\n"),
    ("ten thousand brackets", "nestflow 1\na = " + "(" * 10_000 + "1" + ")" * 10_000 + "\n"),
    ("ten thousand lists", "nestflow 1\na = " + "[" * 10_000 + "]" * 10_000 + "\n"),
    ("ten thousand braces", "nestflow 1\n" + "flow f(x) { " * 10_000),
    ("ten thousand minus signs", "nestflow 1\na = " + "-" * 10_000 + "1\n"),
    ("a hundred mistakes", "nestflow 1\n" + "".join(f"a{i} = nothing{i}(1)\n" for i in range(100)) + "output a0\n"),
    (
        "an alias bomb",
        "nestflow: 1\na: &a [x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)),
    ),
    ("an alias of itself", "nestflow: 1\nlet: {a: &a [*a]}\noutput: a\n"),
    (
        "a mapping that another library would run",
        "nestflow: 1\nlet: {a: {_target_: os.system, _args_: [x]}}\noutput: a\n",
    ),
    ("python in a mapping", 'nestflow: 1\nlet: {a: "__import__(name).getcwd()"}\noutput: a\n'),
    ("terminal codes in a comment", "nestflow 1\n## \x1b[31m red\ninput x : float[8]\noutput x\n"),
    ("an accent that is a letter of its own", "nestflow 1\ninput a\u0301 : float[8]\noutput \u00e1b\n"),
    ("zeros, minutes and switches of old YAML", "nestflow: 1\nlet: {b: 010, c: 1:30, d: on}\noutput: d\n"),
    ("no tokens", GOOD.replace("every 1 token", "every 0 tokens")),
    ("a folder above", 'nestflow 1\nuse "../../etc/passwd"\noutput 1\n'),
    ("a tag that would run code", "nestflow: 1\nlet: {a: !!python/object/apply:os.system ['touch pwned']}\n"),
    ("a key given twice in YAML", "nestflow: 1\nlet: {a: 1}\nlet: {b: 2}\n"),
    ("a tab in YAML", "nestflow: 1\nlet:\n\ta: 1\n"),
    ("a comma in YAML", "nestflow: 1\nflows:\n  f(x): [x = g(x, 1), return x]\noutput: f(tokens)\n"),
    ("a section that is not there", "nestflow: 1\nlevles: {}\n"),
    ("a list at the top of YAML", "- nestflow: 1\n"),
    ("deep YAML", "nestflow: 1\nlet: {a: " + "[" * 3_000 + "]" * 3_000 + "}\n"),
    ("a use that leaves the folder", 'nestflow 1\nuse "../../secret.nl"\noutput 1\n'),
    (
        "a merge bomb in YAML",
        "nestflow: 1\nlet:\n  a0: &a0 {x: 1}\n"
        + "".join(f"  a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}], y{i}: 1}}\n" for i in range(24)),
    ),
    ("a path of Windows", 'nestflow 1\nuse "\\\\\\\\server\\\\share\\\\a.nl"\noutput 1\n'),
    ("a device as a file", 'nestflow 1\nuse "/dev/zero.nl"\noutput 1\n'),
    ("a home as a file", 'nestflow 1\nuse "~/a.nl"\noutput 1\n'),
    ("an extends of what is not there inside", "nestflow 1\nextends titans { level titanz { chunk 64 } }\n"),
    ("a template that calls itself", GOOD.replace("return x + titans(rmsnorm(x))", "return block(titans(rmsnorm(x)))")),
    (
        "loops in loops",
        GOOD.replace("repeat 2 { x = block(x) }", "repeat 1000 { repeat 1000 { repeat 1000 { x = block(x) } } }"),
    ),
    ("heads of a thousand million", GOOD.replace("param n_heads = 2", "param n_heads = 1_000_000_000")),
    ("a width of two to the fortieth", GOOD.replace("param dim = 32 in [1, 65536]", "param dim = 2 ^ 40")),
    ("an assert that does not hold", GOOD + 'assert dim % 7 == 0, "seven must divide dim"\n'),
    ("an assert of what is not known", GOOD + "assert tokens > 3\n"),
    ("a use of an absolute path", 'nestflow 1\nuse "/etc/passwd.nl"\noutput 1\n'),
    ("a network that is no value", NET + "output net + 1\n"),
    ("a network called with nothing", NET + "output net()\n"),
    ("a network called with a number", NET + "output net(3)\n"),
    ("a network called by a name it has not", NET + "output net(x, mask = x)\n"),
    ("a network in a level", NET + LEVEL.replace("key x", "key net(x)")),
    ("a network as a memory", NET + LEVEL.replace("memory matrix", "memory net")),
    ("a network that only lends its weights", "nestflow 1\ninput x : float[T, 8]\nextern net\noutput net(x)\n"),
    ("a network and a flow of one name", NET + "flow net(x) { return x }\noutput net(x)\n"),
    ("a part of a network that is not there", NET + "output net(x).hidden\n"),
    ("a loss of a network in a flow", NET + "flow f(x) { return net(x).loss }\noutput f(x)\n"),
    ("an input of a network given twice", "nestflow 1\nextern net(x, x)\n"),
    ("a type of a network without inputs", "nestflow 1\nextern net : float[T, 8]\n"),
    (
        "a glob of a network that is none",
        'nestflow 1\nextern net\nlevel a { memory weights(net, "[1-3].**"); update gd(1) }\n',
    ),
    (
        "weights of a network that is not declared",
        'nestflow 1\nextern net\nlevel a { memory weights(nett, "a.**"); update gd(1) }\n'
        "level b { memory rest(nett); update gd(1) }\n",
    ),
    (
        "a convolution along tokens of an image",
        "nestflow 1\ninput x : float[3, 8, 8]\noutput f(x)\nflow f(x) { return short_conv(x, 4) }\n",
    ),
    (
        "a copy that its objective does not recall",
        "nestflow 1\ninput x : float[8]\noutput task(x)\nflow net(x) { return linear(x) }\n"
        "level task { memory net; init meta; reset each(step); objective mean(net(x)); update gd(0.1) }\n"
        "level meta { every 1 step; memory weights(net); objective mean(task(x)); update gd(0.1) }\n",
    ),
    (
        "slow weights in a level that begins anew",
        "nestflow 1\ninput x : float[8]\noutput net(x)\nflow net(x) { return linear(x) }\n"
        "level task { memory weights(net); reset each(step); objective mean(net(x)); update gd(0.1) }\n",
    ),
    (
        "the state of a cache",
        "nestflow 1\ninput x : float[T, 8]\noutput f(x)\n"
        "level f(x) {\n  memory seen : cache { key x; value x; query x }\n"
        "  return x * sum(seen)\n}\n",
    ),
    (
        "the gradient of a cache",
        "nestflow 1\ninput x : float[T, 8]\noutput f(x)\n"
        "level f(x) {\n  memory seen : cache { key x; value x; query x }\n"
        "  return x * sum(seen.g)\n}\n",
    ),
    ("an input called like an axis", "nestflow 1\ninput T : float[T]\noutput T\n"),
    ("an axis that a param hides", "nestflow 1\nparam T = 4\ninput x : float[T]\noutput x\n"),
    ("python by no string", "nestflow 1\ninput x : float[T, 8]\noutput py(x)\n"),
]

FILES: list[tuple[str, str, bytes]] = [
    ("bad UTF-8", "bad.nl", b"nestflow 1\nparam d = 4 # \xff\xfe\xfd\n"),
    ("a mark of the byte order inside", "bom.nl", b"nestflow 1\n\xef\xbb\xbfoutput 1\n"),
    ("UTF-16", "utf16.nl", "nestflow 1\n".encode("utf-16")),
    ("a program", "binary.nl", b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 8),
    ("a picture as YAML", "picture.yaml", b"\x89PNG\r\n\x1a\n" + bytes(64)),
    ("two megabytes", "large.nl", b"# a comment\n" * 200_000),
    ("a file that uses itself", "self.nl", b'nestflow 1\nuse "self.nl"\noutput 1\n'),
    ("a file that extends itself", "twin.nl", b'nestflow 1\nextends "twin.nl" { level a { chunk 4 } }\n'),
    ("a file of zero bytes", "zeros.nl", b"nestflow 1\n" + bytes(100)),
    ("old line ends", "mac.nl", b"nestflow 1\rparam d = 4\r"),
    ("a file that uses one that is not there", "uses.nl", b'nestflow 1\nuse "gone.nl"\noutput 1\n'),
]

OTHERS: list[Bad] = [
    Bad("a file that is not there", lambda folder: str(folder / "missing.nl")),
    Bad("a folder", lambda folder: str(_folder(folder / "folder.nl"))),
    Bad("a pipe of the system", lambda folder: _pipe(folder / "pipe.nl")),
    Bad("a link out of the folder", lambda folder: _link(folder)),
    Bad("two files that use each other", lambda folder: _circle(folder)),
    Bad("a name with a zero byte", lambda folder: "a\x00b.nl"),
    Bad("a name that is too long", lambda folder: "a" * 5_000 + ".nl"),
    Bad("a dict of no spec", lambda folder: {"hello": 1}),
    Bad("a dict with itself inside", lambda folder: _loop()),
    Bad("a param that is not there", _text(GOOD), (("dimm", 64),)),
    Bad("a param that is no number", _text(GOOD), (("dim", "wide"),)),
    Bad("a param out of bounds", _text(GOOD), (("dim", -4),)),
    Bad("a param that is code", _text(GOOD), (("dim", "__import__('os').system('touch pwned')"),)),
]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def _link(folder: Path) -> str:
    (folder / "inside").mkdir()
    (folder / "secret.nl").write_text(GOOD, encoding="utf-8")
    (folder / "inside" / "link.nl").symlink_to(folder / "secret.nl")
    (folder / "inside" / "a.nl").write_text('nestflow 1\nuse "link.nl"\noutput 1\n', encoding="utf-8")
    return str(folder / "inside" / "a.nl")


def _circle(folder: Path) -> str:
    for a, b in (("one", "two"), ("two", "one")):
        (folder / f"{a}.nl").write_text(f'nestflow 1\nuse "{b}.nl"\nflow f_{a}(x) {{ return x }}\n', encoding="utf-8")
    return str(folder / "one.nl")


def _loop() -> dict[str, Any]:
    d: dict[str, Any] = {"nestflow": 1}
    d["let"] = {"a": d}
    return d


CASES: list[Bad] = [
    *(Bad(name, _changed(old, new)) for name, old, new in CHANGES),
    *(Bad(name, _text(text)) for name, text in TEXTS),
    *(Bad(name, _file(file, data)) for name, file, data in FILES),
    *OTHERS,
]
