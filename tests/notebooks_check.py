"""The notebooks' first cell on a machine as Colab is: all but what Colab lacks is preinstalled.

``make notebooks-check``, whose requirements are the versions preinstalled, such as jax==0.7.2. It
needs a package index; that the cell refuses what it should is tested without one, in
test_notebooks_install.py.
"""

import json
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name
from wheel_check import PROJECT, new_environment, run

from colab.build import NOTEBOOKS
from colab.install import requirements

ABSENT = frozenset({"tyro", "tensorboardx"})
"""What the project needs and Colab's images do not have."""

_VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({each.name.lower(): each.version for each in distributions()}))
"""
_USED = "\nimport jaxcoder, train.loop, tensorboardX, tyro\nprint('usable at once')\n"


def main(pins: list[str]) -> None:
    """Make the environment, run the first cell of each notebook there, compare.

    Raises:
      SystemExit: a step failed, or a package that was there is another one now, or gone.
    """
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {canonicalize_name(need.name): str(need) for need in requirements(project)}
    preinstalled = [need for name, need in needs.items() if name not in ABSENT]
    with tempfile.TemporaryDirectory(prefix="notebooks-check-") as name:
        folder = Path(name).resolve()
        python = new_environment(folder / "environment")
        # `packaging` comes with every Jupyter kernel.
        run([python, "-m", "pip", "install", "--quiet", "packaging", *preinstalled, *pins], folder)
        before = _versions(python)
        print(f"preinstalled: {len(before)} packages, jax {before['jax']}, flax {before['flax']}")
        for notebook in NOTEBOOKS:
            said = run([python, "-c", first_cell(notebook) + _USED], PROJECT / "colab")
            print(f"{notebook}: {said}", end="", flush=True)
        check(before, _versions(python))
    print(f"notebooks-check: passed with Python {sys.version.split()[0]}")


def first_cell(notebook: str) -> str:
    """The code by which `notebook` installs."""
    path = PROJECT / "colab" / f"{notebook}.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in content["cells"]]
    (found,) = [source for source in sources if "from colab.install import install" in source]
    return found


def check(before: dict[str, str], after: dict[str, str]) -> None:
    """Refuse a change of what was there, and what is still not there.

    Raises:
      SystemExit: names it.
    """
    changed = [
        f"{name} {version} -> {after.get(name, 'removed')}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    absent = sorted(ABSENT - after.keys())
    if changed or absent or ABSENT & before.keys():
        raise SystemExit(f"notebooks-check: FAILED: changed {changed}, not added {absent}")


def _versions(python: Path) -> dict[str, str]:
    return json.loads(run([python, "-c", _VERSIONS], PROJECT))


if __name__ == "__main__":
    main(sys.argv[1:])
