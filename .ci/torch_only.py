"""Link torch and what torch itself needs, and nothing else, into a folder: `python torch_only.py FOLDER`.

With that folder on the path of a fresh environment, installing the nestflow wheel there finds an existing torch and
must bring everything else itself, so that an undeclared dependency shows.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def closure(name: str, found: dict[str, object]) -> None:
    """The installed distributions that `name` needs, itself included; extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        dist = distribution(name)
    except PackageNotFoundError:
        return
    found[key] = dist
    for requirement in dist.requires or []:
        if "extra ==" not in requirement:
            closure(re.match(r"[A-Za-z0-9._-]+", requirement).group(0), found)


target = Path(sys.argv[1])
target.mkdir(parents=True)
found: dict = {}
closure("torch", found)
for dist in found.values():
    for top in {Path(f).parts[0] for f in dist.files or [] if Path(f).parts[0] not in {"..", "__pycache__"}}:
        source = Path(dist.locate_file(top)).resolve()
        if source.exists() and not (target / top).exists():
            (target / top).symlink_to(source)
print("existing:", ", ".join(sorted(found)))
