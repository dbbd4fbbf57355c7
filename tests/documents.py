"""The documents of the project as tests read them: code blocks and commands."""

import re
import shlex
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PUBLISHED = "bigcode/tiny_starcoder_py"
DOCUMENTS = [
    path.relative_to(PROJECT).as_posix()
    for path in (
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *(PROJECT / name for name in ("colab/README.md", "jaxcoder/demo/README.md")),
        *sorted((PROJECT / "docs").rglob("*.md")),
    )
]


def read(document: str) -> str:
    """The text of a document, by its path from the root."""
    return (PROJECT / document).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language; "" is a block of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [source for name, source in found if name == language]


def shell_lines(text: str) -> list[str]:
    """The lines of the shell blocks; one that a backslash continues is one."""
    joined = "".join(blocks("sh", text)).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line]


def commands(text: str) -> list[list[str]]:
    """The words of every shell command, as the shell would split them; of a pipe its last part."""
    return [
        shlex.split(line.rpartition(" | ")[2], comments=True) for line in shell_lines(text) if line
    ]


def run_block(source: str, document: str, model: Path) -> dict[str, object]:
    """Run a Python block with `model` for the published one; returns its variables."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source.replace(PUBLISHED, str(model)), document, "exec"), names)
    return names
