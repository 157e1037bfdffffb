"""Run by .ci/run against the installed wheel, outside the checkout: compile a shipped spec and train it a little."""

import sys
from pathlib import Path

import nestflow
from nestflow.train import corpus, train

checkout, here = Path(sys.argv[1]).resolve(), Path(nestflow.__file__).resolve()
if checkout in here.parents:
    sys.exit(f"the checkout was imported, not the wheel: {here}")
if not (here.parent / "_specs").is_dir():
    sys.exit("the wheel has no specs in it")

bundle = nestflow.compile("hope", dim=32, depth=1, n_heads=2)
history = train(bundle, corpus("shakespeare"), 6, batch=2, length=64, eval_windows=2, out="run")
if not history.losses[-1] < history.losses[0]:
    sys.exit(f"the loss did not fall: {history.losses}")
again = nestflow.load(history.checkpoint)
for a, b in zip(bundle.module.state_dict().values(), again.module.state_dict().values(), strict=True):
    if not a.equal(b):
        sys.exit("a saved and loaded bundle has other weights")
print(f"wheel: {nestflow.__version__} at {here.parent.name}, loss {history.losses[0]:.2f} to {history.losses[-1]:.2f}")
