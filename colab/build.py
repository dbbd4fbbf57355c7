"""``python -m colab.build``: the notebooks, from the sources beside this file, and the badges.

The repository's address stands in pyproject.toml alone. What depends on it is put in the place of
a marker: the badge, and the cell that fetches the checkout.
"""

import json
import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent
NOTEBOOKS = ("inference", "finetune_tpu", "parity")
BRANCH = "main"

BADGE_MARKER = "# {badge}"
INSTALL_MARKER = "# {install}"
DOCUMENTS = (PROJECT / "README.md", FOLDER / "README.md")
"""Their badges, and the address that they say to clone, are kept up to date."""

_CLONED = re.compile(r"(?<=git clone )https://\S+")
_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*/colab/(\w+)\.ipynb\)")

_INSTALL_CELL = """\
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{address}"
places = (Path.cwd(), Path.cwd().parent, Path.cwd() / "jaxcoder")
root = next((place for place in places if (place / "colab" / "install.py").exists()), None)
if root is None:
    root = places[-1]
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(root)], check=True)
sys.path.insert(0, str(root))
from colab.install import install

install(root)
"""


def repository(project: Path = PROJECT) -> str:
    """The address of the repository, of pyproject.toml in `project`."""
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["project"]["urls"]["Repository"]


def install_cell(address: str) -> str:
    """Code that takes the checkout it runs in, or clones `address`, and adds what is missing."""
    return _INSTALL_CELL.format(address=address)


def badge(name: str, address: str) -> str:
    """Markdown that opens the notebook `name` in Colab.

    Raises:
      ValueError: Colab opens no notebooks of `address`.
    """
    owner_and_name = address.removeprefix("https://github.com/")
    if owner_and_name == address:
        raise ValueError(
            f"Repository is {address!r}, but Colab's badges open https://github.com/OWNER/NAME"
        )
    host = "https://colab.research.google.com"
    page = f"{host}/github/{owner_and_name}/blob/{BRANCH}/colab/{name}.ipynb"
    return f"[![Open in Colab]({host}/assets/colab-badge.svg)]({page})"


def notebook(name: str, address: str) -> str:
    """The file ``name.ipynb``, without outputs.

    Raises:
      ValueError: jupytext is not installed, or a marker is not in the source exactly once.
    """
    try:
        import jupytext
    except ImportError as exc:
        raise ValueError("jupytext is not installed; pip install '.[notebooks]'") from exc
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    generated = {
        BADGE_MARKER: f"# {badge(name, address)}",
        INSTALL_MARKER: install_cell(address).rstrip(),
    }
    for marker, text in generated.items():
        if source.count(f"{marker}\n") != 1:
            raise ValueError(f"{name}.py: expected the line {marker!r} once")
        source = source.replace(f"{marker}\n", f"{text}\n")
    cells = jupytext.reads(source, fmt="py:percent")["cells"]
    content = {
        # Numbered: drawn at random, they would differ each time.
        "cells": [_cell(cell, f"cell-{number}") for number, cell in enumerate(cells)],
        "metadata": {
            "colab": {"provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    if name == "finetune_tpu":
        content["metadata"]["accelerator"] = "TPU"
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(cell: dict, identity: str) -> dict:
    fields = {"cell_type": cell["cell_type"], "id": identity, "metadata": {}}
    if cell["cell_type"] == "code":
        fields |= {"execution_count": None, "outputs": []}
    return fields | {"source": cell["source"].splitlines(keepends=True)}


def build(address: str) -> dict[Path, str]:
    """Every generated file and its content, as it is where the repository is at `address`."""
    files = {FOLDER / f"{name}.ipynb": notebook(name, address) for name in NOTEBOOKS}
    for document in DOCUMENTS:
        text = _CLONED.sub(address, document.read_text(encoding="utf-8"))
        files[document] = _BADGE.sub(lambda found: badge(found[1], address), text)
    return files


def main() -> None:
    """Write what is generated, and say which files were not up to date."""
    for path, text in build(repository()).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(PROJECT))


if __name__ == "__main__":
    main()
