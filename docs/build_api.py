"""Writes the API reference, docs/api/*.md, from the docstrings: ``python docs/build_api.py``.

Sources are parsed and never imported, so that the pages are the same under every Python and with
any library version. tests/test_api_reference.py checks that they are current.
"""

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
PAGES_FOLDER = PROJECT / "docs" / "api"

_WIDEST = 88
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
FRAMEWORK_METHODS = ("setup",)  # called by Flax, not by a reader

Definition = ast.FunctionDef | ast.ClassDef


class Page(NamedTuple):
    """One page of the reference."""

    title: str
    about: str
    modules: str
    """Dotted names, separated by blanks."""


PAGES = {
    "jaxcoder": Page(
        "jaxcoder: the public face",
        "What `from jaxcoder import ...` gives.",
        "jaxcoder.generator jaxcoder.completion jaxcoder.config jaxcoder.errors",
    ),
    "inspect": Page(
        "jaxcoder.inspect: looking inside",
        "Activations by name, patches, the logit lens, the loss of each token.",
        "jaxcoder.inspect jaxcoder.token_losses jaxcoder.loss_views jaxcoder.activations",
    ),
    "model": Page(
        "The model",
        "The forward pass, its parts, and its definition in NumPy.",
        "jaxcoder.model jaxcoder.layers jaxcoder.self_attention jaxcoder.cached_attention "
        "jaxcoder.products jaxcoder.cache jaxcoder.reference",
    ),
    "generation": Page(
        "Generation",
        "Tokens in, tokens out; sampling; infilling; devices.",
        "jaxcoder.generate jaxcoder.sampling jaxcoder.fim jaxcoder.devices",
    ),
    "files": Page(
        "Checkpoints and tokenizers",
        "From a folder to a config, parameters and a tokenizer, and back.",
        "jaxcoder.checkpoint jaxcoder.hub jaxcoder.hf_names jaxcoder.tokenizer",
    ),
    "conversion": Page(
        "conversion",
        "The tool-box, from the checkout; `python -m conversion` is its command line.",
        "conversion.convert conversion.export conversion.verify conversion.parity "
        "conversion.report conversion.pytorch",
    ),
    "train": Page(
        "train",
        "Training, from the checkout; `python -m train` is its command line.",
        "train.loop train.config train.presets train.fim train.data train.step train.export "
        "train.plot",
    ),
    "benchmarks": Page(
        "benchmarks",
        "From the checkout: what the notebooks draw with.",
        "benchmarks.pictures",
    ),
    "colab": Page(
        "colab",
        "From the checkout: what the cells of the notebooks call.",
        "colab.install colab.models colab.disconnect",
    ),
}
"""The pages by file name. What they list is public: the modules that users, notebooks and guides
import from."""

SHOWN = {"jaxcoder.completion": ("Completion", "Timings")}
"""Modules of which only these names are for readers."""


def source_file(module: str) -> Path:
    """The file of a dotted module, a package's being its ``__init__.py``."""
    path = PROJECT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parse(module: str) -> ast.Module:
    """The syntax tree of a module of the project."""
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def public_definitions(module: str) -> list[Definition]:
    """The functions and classes that a page shows of a module."""
    found = [node for node in parse(module).body if isinstance(node, Definition)]
    names = SHOWN.get(module, tuple(node.name for node in found))
    return [node for node in found if node.name in names and not node.name.startswith("_")]


def is_overload(node: Definition) -> bool:
    """Whether a definition is one signature out of several, the last of which has the docstring."""
    return any(ast.unparse(mark).endswith("overload") for mark in node.decorator_list)


def public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """The methods of a class that a reader may call; ``__call__`` where it says more than that."""
    methods = [
        each for each in node.body if isinstance(each, ast.FunctionDef) and not is_overload(each)
    ]
    return [
        method
        for method in methods
        if (not method.name.startswith("_") and method.name not in FRAMEWORK_METHODS)
        or (method.name == "__call__" and ast.get_docstring(method))
    ]


def documented_values(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Assignments with a docstring below them: (``name: type = value``, the docstring)."""
    for statement, following in itertools.pairwise(body):
        is_docstring = (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        )
        if isinstance(statement, ast.AnnAssign | ast.Assign) and is_docstring:
            yield ast.unparse(statement), inspect.cleandoc(following.value.value)


def signature(node: Definition) -> str:
    """How a function is called or a class is made."""
    if isinstance(node, ast.FunctionDef):
        marks = [f"@{ast.unparse(mark)}\n" for mark in node.decorator_list]
        shown = "".join(
            mark for mark in marks if mark[1:-1] in ("property", "classmethod", "staticmethod")
        )
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return shown + _call(f"def {node.name}", _parameters(node), returns)
    initialisers = [each for each in node.body if getattr(each, "name", "") == "__init__"]
    bases = [ast.unparse(base) for base in node.bases]
    if initialisers:
        return _call(f"class {node.name}", _parameters(initialisers[0])[1:], "")
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    if fields:
        return _call(f"class {node.name}", fields, "")
    return f"class {node.name}" + (f"({', '.join(bases)})" if bases else "")


def _parameters(node: ast.FunctionDef) -> list[str]:
    arguments = node.args
    if arguments.posonlyargs or arguments.kwarg:
        raise ValueError(f"{node.name}: positional-only and ** parameters are not written here")
    positional = arguments.args
    without = len(positional) - len(arguments.defaults)
    shown = [
        _parameter(argument, arguments.defaults[i - without] if i >= without else None)
        for i, argument in enumerate(positional)
    ]
    if arguments.vararg:
        shown.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        shown.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return shown + [_parameter(argument, default) for argument, default in pairs]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    if default is None:
        return text
    return text + (" = " if argument.annotation else "=") + ast.unparse(default)


def _call(name: str, parameters: list[str], returns: str) -> str:
    one_line = f"{name}({', '.join(parameters)}){returns}"
    if len(one_line) <= _WIDEST:
        return one_line
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{lines}){returns}"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its sections become lists, its tables code."""
    out: list[str] = []
    section, in_table = "", False
    for line in docstring.splitlines():
        heading = line.removesuffix(":")
        in_table = bool(line) and (in_table or line.startswith("==="))
        if line.endswith(":") and heading in _SECTIONS:
            section = heading
            out += [f"**{heading}**", ""]
        elif section and line.startswith("  "):
            out.append(_section_line(line.removeprefix("  "), section))
        else:
            section = "" if line else section
            is_code = line.startswith("    ")
            out.append(f"    {line}" if in_table else line if is_code else _escaped(line))
    return "\n".join(out)


def _section_line(line: str, section: str) -> str:
    """A line of a section without its indentation: a name with its text, or more of that."""
    name, separator, text = line.partition(": ")
    if section in ("Returns", "Yields"):
        return _escaped(line)
    if line.startswith("  ") or not separator:
        return "  " + _escaped(line.strip())
    return f"- `{name}`: {_escaped(text)}"


def _escaped(text: str) -> str:
    """Text with what Markdown would read as emphasis or a tag escaped outside of code."""
    parts = re.split(r"(``.*?``|`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts
    )


def _definition(node: Definition, owner: str) -> str:
    """The entry of a function or class, and below it those of its methods."""
    level = "####" if owner else "###"
    name = f"{owner}.{node.name}" if owner else node.name
    docstring = ast.get_docstring(node)
    if docstring is None:
        raise ValueError(f"{name}: no docstring, expected one; the API reference is made of them")
    parts = [f"{level} {name}", f"```py\n{signature(node)}\n```", markdown(docstring)]
    if isinstance(node, ast.ClassDef):
        values = [
            f"- `{what}`: {_escaped(' '.join(text.split()))}"
            for what, text in documented_values(node.body)
        ]
        parts += ["\n".join(values)] if values else []
        parts += [_definition(method, name) for method in public_methods(node)]
    return "\n\n".join(parts)


def _module(module: str) -> str:
    tree = parse(module)
    values = [
        f"- `{what}`: {_escaped(' '.join(text.split()))}"
        for what, text in documented_values(tree.body)
        if not what.startswith("_") and module not in SHOWN
    ]
    path = source_file(module).relative_to(PROJECT).as_posix()
    parts = [f"## {module}", f"[{path}](../../{path})", markdown(ast.get_docstring(tree) or "")]
    parts += ["\n".join(values)] if values else []
    return "\n\n".join([*parts, *(_definition(node, "") for node in public_definitions(module))])


def pages() -> dict[str, str]:
    """File name -> Markdown of every page, the index among them."""
    note = "Generated from the docstrings by `make docs`; edit those. Letters and dtypes: "
    note += "[notation](../notation.md)."
    written = {
        f"{name}.md": "\n\n".join(
            [
                f"# {page.title}",
                f"{page.about} {note}",
                *(_module(module) for module in page.modules.split()),
            ]
        )
        + "\n"
        for name, page in PAGES.items()
    }
    listed = "\n".join(f"- [{page.title}]({name}.md): {page.about}" for name, page in PAGES.items())
    written["README.md"] = f"# API reference\n\n{note}\n\n{listed}\n"
    return written


def main() -> None:
    """Write the pages."""
    PAGES_FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES_FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
