"""Bundles on disk: a folder that is whole or absent, and that says what is wrong with it when it does not load.

bundle.json               format, spec's name, params, seed, type, clocks, size and SHA-256 of every other file
NAME.nl                   the spec, used parts included
weights.safetensors       the slow weights by path
buffers.safetensors       the buffers of networks of yours, if there are any
optimizer.safetensors     what the optimizer keeps (its numbers are in bundle.json)
extra.safetensors         tensors of `extra`, if it has any
model.py, optim.py        the generated source, to be read; loading compiles the spec again
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestflow._python import allowed, allowing
from nestflow._version import __version__
from nestflow.bundle.codec import pack, unpack
from nestflow.bundle.networks import buffers_of
from nestflow.diagnostics.core import fail

if TYPE_CHECKING:
    from nestflow.bundle.bundle import Bundle

FORMAT = 1
INDEX = "bundle.json"


def save(bundle: Bundle, path: Path, extra: dict[str, Any]) -> Path:
    """Write a bundle's folder beside its place, then put it there; what stood there stays until then.

    Raises NestflowError: NF511 where it cannot be written, NF516 where `extra` holds what is no data.
    """
    if "\0" in str(path):
        raise fail("NF511", f"cannot write the bundle {str(path)!r}: a name with a zero byte")
    try:
        where = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link stays: what it names is written
        _put(bundle, where, extra)
    except OSError as e:
        raise fail("NF511", f"cannot write the bundle `{path}`: {e.strerror or e}") from e
    return path


def refuse_foreign(path: Path) -> None:
    """Raise NF511 where something stands that is no bundle: a long run should know before it begins."""
    if path.exists() and not _is_bundle(path) and (not path.is_dir() or any(path.iterdir())):
        raise fail(
            "NF511",
            f"`{path}` is there already and is no bundle",
            help="choose another folder: nothing of yours is overwritten",
        )


def _put(bundle: Bundle, path: Path, extra: dict[str, Any]) -> None:
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:100]}.writing-"
    _clear_stale(path.parent, prefix)
    writing = Path(tempfile.mkdtemp(prefix=f"{prefix}{_host()}-{os.getpid()}-", dir=path.parent))
    try:
        writing.chmod(0o777 & ~_umask())
        _write(bundle, writing, extra)
        _swap(writing, path)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _clear_stale(folder: Path, prefix: str) -> None:
    """Remove what processes of this machine that were killed while saving have left."""
    if os.name != "posix":
        return
    for left in folder.glob(glob.escape(prefix) + f"{_host()}-*"):
        pid = left.name.removeprefix(prefix).split("-")[1]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError, OverflowError):
            continue


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_bundle(path: Path) -> bool:
    return (path / INDEX).is_file()


def _swap(writing: Path, path: Path) -> None:
    """Put the written folder in its place. If the process dies between the two renames, `load` finds the old one."""
    old = _old(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    writing.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _write(bundle: Bundle, folder: Path, extra: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    spec = (re.sub(r"[^\w.-]", "_", bundle.name) or "spec") + ".nl"
    (folder / spec).write_text(bundle.spec, encoding="utf-8")
    save_file(_plain({**bundle.module.weights, **bundle.module.kept}), folder / "weights.safetensors")
    if buffers := buffers_of(bundle.networks):
        save_file(_plain(buffers), folder / "buffers.safetensors")
    optimizer: Any = None
    if "optimizer" in bundle.__dict__:
        tensors: dict[str, Tensor] = {}
        optimizer = pack(bundle.optimizer.state_dict(), tensors)
        save_file(tensors, folder / "optimizer.safetensors")
    tensors = {}
    try:
        packed = pack(extra, tensors)
    except TypeError as e:
        raise fail("NF516", f"this `extra` cannot be saved: {e}") from None
    except RecursionError:
        raise fail("NF516", "this `extra` cannot be saved: it holds itself, or is nested too deep") from None
    if tensors:
        save_file(tensors, folder / "extra.safetensors")
    bundle.write_source(folder)
    index = {
        "format": FORMAT,
        "nestflow": __version__,
        "torch": torch.__version__,
        "name": bundle.name,
        "spec": spec,
        "overrides": bundle.overrides,
        "seed": bundle.seed,
        "dtype": str(bundle.module.dtype).removeprefix("torch."),
        "training": bundle.module.training,
        "draws": bundle.module.draws,
        "total_steps": bundle._total_steps,
        "optimizer": optimizer,
        "networks": {n: type(net).__name__ for n, net in bundle.networks.items()},
        "extra": packed,
        "files": {f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in sorted(folder.iterdir())},
    }
    index["sha256"] = _index_digest(index)
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    for f in folder.iterdir():
        f.chmod(0o666 & ~_umask())  # safetensors makes files that others cannot read
        with f.open("rb") as handle:
            os.fsync(handle.fileno())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that a file can hold: on the CPU, each with storage of its own."""
    return {p: x.detach().cpu().contiguous().clone() for p, x in tensors.items()}


def _index_digest(index: dict[str, Any]) -> str:
    """Of all entries but its own: numbers of the optimizer that were changed would load and train on, wrong."""
    rest = {k: v for k, v in index.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---- loading


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    allow_python: bool = False,
    execution: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **networks: Any,
) -> Bundle:
    """The bundle that `save` wrote: same weights, optimizer, clocks and schedules, bit for bit.

    allow_python: its spec may run the Python functions that it names. execution: as of `compile`; the weights keep
    the type that they were saved with. networks: the caller's, where the spec declares
    any (`net=model`); their parameters and buffers are set to those that were saved. Raises NestflowError: NF512 (no
    bundle there, or a file of it is missing), NF513 (a file is truncated or changed), NF514 (written by a newer
    nestflow, or for a spec with other weights), NF560 and NF561 (networks), NF570 (Python that was not allowed).
    """
    from nestflow.bundle.compile import compile_program
    from nestflow.bundle.tuned import told

    said = told(execution)
    path = Path(path)
    if not path.exists() and _is_bundle(_old(path)):
        path = _old(path)
    index = _index(path)
    _check_files(path, index)
    wrong = next((n for n, net in networks.items() if not isinstance(net, torch.nn.Module)), None)
    if wrong is not None:
        what = f"`{wrong}` is to be a network, an `nn.Module`, and this is a {type(networks[wrong]).__name__}"
        raise fail("NF561", what, help="params were settled when the spec was compiled")
    with allowing(allow_python or allowed()):
        bundle = compile_program(
            str(path / index["spec"]),
            index["overrides"],
            dtype=None if networks else getattr(torch, index["dtype"]),
            device=device or said.get("device"),
            seed=index["seed"],
            networks=networks,
            execution=said,
            saved=True,
        )
    _load_weights(bundle, _tensors(path / "weights.safetensors"), path)
    if (path / "buffers.safetensors").exists():
        _load_buffers(networks, _tensors(path / "buffers.safetensors"), path)
    bundle.set_total_steps(index["total_steps"]) if index["total_steps"] else None
    try:
        if index["optimizer"] is not None:
            bundle.optimizer.load_state_dict(unpack(index["optimizer"], _tensors(path / "optimizer.safetensors")))
        more = path / "extra.safetensors"
        bundle.extra = unpack(index["extra"], _tensors(more) if more.exists() else {})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise fail("NF513", f"`{path / INDEX}` does not fit the spec beside it ({type(e).__name__}: {e!s:.100})") from e
    bundle.module.__dict__["_passes"] = index.get("draws", 0)
    bundle.module.train(index["training"])
    return bundle


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as e:
        raise fail("NF513", f"`{file}` is damaged: {e}") from None
    except OSError as e:
        raise fail("NF512", f"`{file}` cannot be read: {e.strerror or e}") from None


def _index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no bundle" if path.is_dir() else "is no folder" if path.exists() else "does not exist"
        help_ = "give the folder that `save` wrote; it holds a `bundle.json`"
        if not path.is_dir() and _is_bundle(path.parent):
            what, help_ = (
                f"is a file of the bundle in `{path.parent}`",
                f'give the folder: `nestflow.load("{path.parent}")`',
            )
        elif _is_bundle(path / "bundle"):
            what, help_ = "is the folder of a run", f'its bundle lies in it: `nestflow.load("{path / "bundle"}")`'
        raise fail("NF512", f"`{path}` {what}", help=help_) from None
    except OSError as e:
        raise fail("NF512", f"`{file}` cannot be read: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise fail("NF513", f"`{file}` is damaged: it is no JSON") from e
    if not isinstance(index, dict) or not isinstance(index.get("format"), int):
        raise fail("NF513", f"`{file}` is no index of a bundle")
    if isinstance(index["format"], bool) or index["format"] < 1:
        raise fail("NF513", f"`{file}` is no index of a bundle: its format is {index['format']}")
    if index["format"] > FORMAT:
        raise fail(
            "NF514",
            f"`{path}` was written by nestflow {index.get('nestflow', '?')}, a format unknown to {__version__}",
            help="update nestflow",
        )
    wanted = {"name": str, "spec": str, "overrides": dict, "seed": int, "dtype": str, "files": dict, "training": bool}
    wrong = [k for k, t in wanted.items() if not isinstance(index.get(k), t)]
    missing = [k for k in ("optimizer", "extra", "total_steps") if k not in index]
    for k, t in (("optimizer", dict), ("extra", dict), ("total_steps", int)):
        if k not in missing and not (isinstance(index[k], t) or (index[k] is None and k != "extra")):
            wrong.append(k)
    if (
        wrong
        or missing
        or index["dtype"] not in ("float32", "float64", "float16", "bfloat16")
        or "weights.safetensors" not in index["files"]
    ):
        raise fail(
            "NF513",
            f"`{file}` is no whole index of a bundle: see {', '.join([*wrong, *missing]) or 'files'}",
        )
    if index.get("sha256", _index_digest(index)) != _index_digest(index):
        raise fail(
            "NF513",
            f"`{file}` is not as it was written: its SHA-256 differs",
            help="params are set when a spec is compiled: `nestflow.compile(...)`",
        )
    return index


def _check_files(path: Path, index: dict[str, Any]) -> None:
    for name, entry in index["files"].items():
        file = path / name
        if Path(name).name != name or not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
            raise fail("NF513", f"`{path / INDEX}` names a file outside the bundle, or without its size: `{name}`")
        if not file.is_file():
            raise fail("NF512", f"`{path}` lacks its file `{name}`", help="copy the whole folder")
        size = file.stat().st_size
        if size != entry.get("bytes"):
            raise fail(
                "NF513",
                f"`{file}` has {size:,} bytes and should have {entry.get('bytes'):,}: it is truncated or changed",
            )
        if name not in ("model.py", "optim.py") and _digest(file) != entry.get("sha256"):
            raise fail("NF513", f"`{file}` is not as it was written: its SHA-256 differs")
    if index["spec"] not in index["files"]:
        raise fail("NF513", f"`{path / INDEX}` does not name its spec among its files")
    if not index["spec"].endswith(".nl"):
        raise fail("NF513", f"`{path / INDEX}` names no spec: `{index['spec']}`")


def _load_weights(bundle: Bundle, tensors: dict[str, Tensor], path: Path) -> None:
    weights = {**bundle.module.weights, **bundle.module.kept}
    lost = [p for p in weights if p not in tensors or tensors[p].shape != weights[p].shape] + [
        p for p in tensors if p not in weights
    ]
    other = next((p for p, w in weights.items() if p in tensors and tensors[p].dtype != w.dtype), None)
    if bundle.networks and not lost and other is not None:
        have, want = (str(x.dtype).removeprefix("torch.") for x in (weights[other], tensors[other]))
        message = f"`{other}` was saved as {want}, and the network given has it as {have}"
        raise fail("NF561", message, help=f"`model.to(torch.{want})` before it is given")
    if lost:
        raise fail(
            "NF514",
            f"the weights in `{path}` are not those of its spec: `{lost[0]}`"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else ""),
            help="is the network built as it was when the bundle was saved?"
            if bundle.networks
            else "was it written by another version of nestflow, whose shipped blocks differ?",
        )
    with torch.no_grad():
        for p, w in weights.items():
            w.copy_(tensors[p])


def _load_buffers(networks: Mapping[str, torch.nn.Module], tensors: dict[str, Tensor], path: Path) -> None:
    buffers = buffers_of(networks)
    lost = [n for n in {**buffers, **tensors} if n not in tensors or n not in buffers]
    lost += [n for n, b in buffers.items() if n not in lost and tensors[n].shape != b.shape]
    if lost:
        message = f"the buffers in `{path}` are not those of the network given: `{lost[0]}`"
        raise fail("NF514", message, help="is the network built as it was when the bundle was saved?")
    with torch.no_grad():
        for n, b in buffers.items():
            b.copy_(tensors[n])
