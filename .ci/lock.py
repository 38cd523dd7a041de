"""Print the lock file: each package that the project and its `dev` extra need, directly or not, as installed here.

Run by `make lock`. Local version labels (`+cpu`) are dropped: they name a build for one machine. A package that is
installed but that nothing asks for is left out, and named on stderr.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

HEADER = "# What was tested, for `pip install -r`. Written by `make lock`; do not edit.\n"
BUILT_IN = {"pip", "setuptools", "wheel", "urg"}


def canonical(name: str) -> str:
    """The name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(roots: list[str]) -> dict[str, str]:
    """The version of every package that the requirements `roots` need, by canonical name."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(root), "") for root in roots]
    while queue:
        requirement, extra = queue.pop()
        name = canonical(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            sys.exit(f"{requirement} is not installed: run `make install` first.")
        found[name] = package.version.partition("+")[0]
        for wanted in {"", *requirement.extras} - {extra for seen_name, extra in seen if seen_name == name}:
            seen.add((name, wanted))
            queue += [(Requirement(text), wanted) for text in package.requires or []]
    return found


def main() -> None:
    """Print the lock file of the project in the current folder."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found = needed([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    print(HEADER + "".join(f"{name}=={found[name]}\n" for name in sorted(found.keys() - BUILT_IN)), end="")
    stray = {canonical(package.name) for package in distributions()} - found.keys() - BUILT_IN
    if stray:
        print("left out, since pyproject.toml does not need them:", ", ".join(sorted(stray)), file=sys.stderr)


if __name__ == "__main__":
    main()
