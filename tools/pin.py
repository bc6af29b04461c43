"""Print a constraints file of the environment that runs this script.

    make clean && make constraints

A package that gave up an older Python gets a marker, so that one file serves every supported version.
What torch brings along for one platform only (CUDA libraries, Triton) is left to torch.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions

OLDEST = 10  # the 3.x of requires-python
LEFT_OUT = re.compile(r"^(mmrobust|pip|triton|nvidia-.*|cuda-.*)$")


def constraint(package: Distribution) -> str:
    """Return ``name==version``, with a marker where the package needs a newer Python than the project does."""
    name, version = package.metadata["Name"], package.version.partition("+")[0]
    minor = re.search(r">=\s*3\.(\d+)", package.metadata.get("Requires-Python") or "")
    marker = f' ; python_version >= "3.{minor[1]}"' if minor and int(minor[1]) > OLDEST else ""
    return f"{name.lower().replace('_', '-')}=={version}{marker}"


if __name__ == "__main__":
    packages = {package.metadata["Name"]: package for package in distributions()}
    lines = sorted(constraint(package) for name, package in packages.items() if not LEFT_OUT.match(name.lower()))
    print("# Made by `make constraints`: the versions that the tests and the demo are known to work with.")
    print("\n".join(lines))
