"""The documents of the project as tests read them: code blocks and commands."""

import re
import shlex
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PUBLISHED = "bigcode/tiny_starcoder_py"
DOCUMENTS = [
    path.relative_to(PROJECT).as_posix()
    for path in (
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(PROJECT / f"{name}/README.md" for name in ("benchmarks", "colab", "jaxcoder/demo")),
        *sorted((PROJECT / "docs").rglob("*.md")),
    )
]

# Indentation, fence, language, source.
_FENCED = re.compile(r"^( *)(`{3,}|~{3,})([^\n]*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)


def read(document: str) -> str:
    """The text of a document, by its path from the root."""
    return (PROJECT / document).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language, of a list's items too; "" is a block of none."""
    return [
        re.sub(rf"^{indent}", "", source, flags=re.MULTILINE)
        for indent, _, name, source in _FENCED.findall(text)
        if name == language
    ]


def languages(text: str) -> set[str]:
    """What stands after the fences that open a block."""
    return {name for _, _, name, _ in _FENCED.findall(text)}


def hidden_code(text: str) -> list[str]:
    """Beginnings of what Markdown takes for code although it is in none of the blocks.

    That is a fence in a quotation, or one that nothing closes, and lines indented by four.
    """
    outside = _FENCED.sub("", text)
    return re.findall(r"^.*(?:```|~~~).*$|^(?: {4}|\t).*\S.*$", outside, re.MULTILINE)


def shell_lines(text: str) -> list[str]:
    """The lines of the shell blocks; one that a backslash continues is one."""
    joined = "".join(blocks("sh", text)).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line]


def commands(text: str) -> list[list[str]]:
    """The words of every shell command, as the shell would split them; of a pipe its last part."""
    lines = [line.rpartition(" | ")[2] for line in shell_lines(text)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_block(source: str, document: str, model: Path) -> dict[str, object]:
    """Run a Python block with `model` for the published one; returns its variables."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source.replace(PUBLISHED, str(model)), document, "exec"), names)
    return names
