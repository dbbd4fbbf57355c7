"""The API reference is current, and every public name says what it takes, gives and refuses.

docs/build_api.py makes docs/api/*.md from the docstrings; `make docs` runs it.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxcoder

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxcoder", "conversion", "train", "benchmarks")

_SPEC = importlib.util.spec_from_file_location("build_api", PROJECT / "docs" / "build_api.py")
build_api = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build_api)

NOTATION = (PROJECT / "docs" / "notation.md").read_text(encoding="utf-8")
COMMON = set(re.findall(r"^\| `(\w+)` \| [^|]* \|$", NOTATION, re.MULTILINE))
"""Arguments that docs/notation.md explains once for all docstrings."""
SHAPE = re.compile(r"\[[^\]\n]*\]|\baxis\b|\baxes\b")
"""What says how large an array is: [B, T], or which of its axes matter."""
SOURCED = """
jaxcoder.config jaxcoder.fim jaxcoder.layers jaxcoder.model jaxcoder.reference jaxcoder.sampling
jaxcoder.self_attention train.fim
""".split()  # noqa: SIM905
"""Modules that state somebody else's formula or format, and so name where it is from."""


def definitions(source: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Name and node of every public function, class and method of a file."""

    def visit(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if not isinstance(node, build_api.Definition) or build_api.is_overload(node):
                continue
            if not node.name.startswith("_"):
                yield owner + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body, f"{owner}{node.name}.")

    yield from visit(ast.parse(source).body, "")


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    given = [*node.args.args, *node.args.kwonlyargs]
    return [argument for argument in given if argument.arg not in ("self", "cls")]


def listed_arguments(docstring: str) -> list[str]:
    """The names that the section Args has an entry for."""
    section = re.search(r"^Args:\n((?:  .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.findall(r"^  (\w[\w, ]*):", section[1], re.MULTILINE) if section else []
    return [name for entry in entries for name in entry.split(", ")]


def problems(source: str, *, in_reference: bool) -> list[str]:
    """What the docstrings of a file lack; `in_reference`: more is asked of what is listed there."""
    found = []
    for name, node in definitions(source):
        docstring = ast.get_docstring(node)
        if docstring is None:
            if node.name not in build_api.FRAMEWORK_METHODS:
                found.append(f"{name}: no docstring")
        elif isinstance(node, ast.ClassDef):
            found += class_problems(name, node, docstring) if in_reference else []
        else:
            found += function_problems(name, node, docstring, in_reference=in_reference)
    return found


def class_problems(name: str, node: ast.ClassDef, docstring: str) -> Iterator[str]:
    described = dict(build_api.documented_values(node.body))
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or field.target.id in COMMON:
            continue
        if ast.unparse(field.annotation).endswith("Config"):  # a group of settings says it itself
            continue
        text = described.get(ast.unparse(field), "")
        if not text and not re.search(rf"\b{field.target.id}\b", docstring):
            yield f"{name}: the field {field.target.id} is not described"
        if is_array(field.annotation) and not SHAPE.search(text or docstring):
            yield f"{name}: the field {field.target.id} has no shape"


def function_problems(
    name: str, node: ast.FunctionDef, docstring: str, *, in_reference: bool
) -> Iterator[str]:
    names = [argument.arg for argument in parameters(node)]
    special = [each for each in names if each not in COMMON]
    # A function of one thing is described by its sentence.
    if "Args:" in docstring or (in_reference and len(special) > 1):
        for each in special:
            if not re.search(rf"\b{each}\b", docstring):
                yield f"{name}: the parameter {each} is not named"
    for each in listed_arguments(docstring):
        if each not in names:
            yield f"{name}: Args lists {each}, which is no parameter"
    if not in_reference:
        return
    raised = [each for each in ast.walk(node) if isinstance(each, ast.Raise) and each.exc]
    if raised and "Raises:" not in docstring:
        yield f"{name}: raises, and has no section Raises"
    annotations = [argument.annotation for argument in parameters(node)] + [node.returns]
    if any(map(is_array, annotations)) and not SHAPE.search(docstring):
        yield f"{name}: takes or gives arrays, and states no shape"


def is_array(annotation: ast.expr | None) -> bool:
    names = [each.id for each in ast.walk(annotation or ast.Constant(None)) if hasattr(each, "id")]
    attributes = [
        each.attr for each in ast.walk(annotation or ast.Constant(None)) if hasattr(each, "attr")
    ]
    return bool({"Array", "ndarray"} & {*names, *attributes})


REFERENCE = [module for page in build_api.PAGES.values() for module in page.modules.split()]
FILES = sorted(
    path.relative_to(PROJECT).as_posix()
    for package in PACKAGES
    for path in (PROJECT / package).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES)
def test_public_names_are_documented(file: str) -> None:
    """A name without a docstring is not in the reference; one that lists arguments lists all."""
    module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    source = (PROJECT / file).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{file}: no docstring"
    found = problems(source, in_reference=module in REFERENCE)
    assert not found, "\n".join(f"{file}: {problem}" for problem in found)


PLANTED = {
    "def f():\n    pass": "no docstring",
    "class A:\n    'A.'\n    def m(self):\n        pass": "A.m: no docstring",
    "def f(a, b):\n    '''F.\n\n    Args:\n      a: one.\n    '''": "the parameter b is not named",
    "def f(a):\n    '''F.\n\n    Args:\n      a: one.\n      z: old.\n    '''": "Args lists z",
    "def f(a, b):\n    'F of a.'": "the parameter b is not named",
    "def f():\n    'F.'\n    raise ValueError": "no section Raises",
    "def f(a: jax.Array):\n    'F of a.'": "states no shape",
    "class A(NamedTuple):\n    'A.'\n    x: int": "the field x is not described",
    "class A(NamedTuple):\n    'A.'\n    x: Array\n    'X.'": "the field x has no shape",
}


@pytest.mark.parametrize("source", PLANTED)
def test_planted_gap_is_found(source: str) -> None:
    """Negative control of the test above."""
    (found,) = problems(source, in_reference=True)
    assert PLANTED[source] in found


def test_pages_are_current() -> None:
    """What is committed is what the docstrings give now: `make docs` after a change of one."""
    written = {path.name: path.read_text() for path in build_api.PAGES_FOLDER.glob("*.md")}
    made = build_api.pages()
    assert sorted(written) == sorted(made)
    for name in made:
        assert written[name] == made[name], f"docs/api/{name} is not current; run `make docs`"


def test_every_exported_name_has_an_entry() -> None:
    page = build_api.pages()["jaxcoder.md"]
    for name in jaxcoder.__all__:
        if not name.startswith("_") and name != "inspect":
            assert f"\n### {name}\n" in page, name
    for member in ("generate", "stream", "infill", "infill_prompt", "logits", "from_pretrained"):
        assert f"\n#### Generator.{member}\n" in page


@pytest.mark.parametrize("module", SOURCED)
def test_a_formula_names_its_source(module: str) -> None:
    docstring = ast.get_docstring(build_api.parse(module))
    assert re.search(r"Source|arXiv", docstring), module


def test_arguments_that_need_no_explanation_are_few() -> None:
    """They are read from the notation: a table that is not found would excuse nothing."""
    assert {"config", "model", "params", "tokenizer", "cache"} <= COMMON
    assert len(COMMON) < 15


def test_sections_become_lists() -> None:
    docstring = (
        "F.\n\nArgs:\n  a: ids [B, T], of\n    two lines.\n\nRaises:\n  ValueError: a < 0.\n"
    )
    assert build_api.markdown(docstring) == (
        "F.\n\n**Args**\n\n- `a`: ids [B, T], of\n  two lines.\n\n"
        "**Raises**\n\n- `ValueError`: a \\< 0."
    )


def test_table_stays_a_table() -> None:
    """A continuation line, itself indented, moves with the others."""
    docstring = "F.\n\n=====  =====\nname   *what\n=====  =====\na      one\n       two\n\nText."
    lines = build_api.markdown(docstring).splitlines()
    assert lines[2:7] == [f"    {line}" for line in docstring.splitlines()[2:7]]
    assert lines[-1] == "Text."


def test_text_is_escaped_and_code_is_not() -> None:
    text = "<prefix> and K*H, `<a*b>`, ``x * y``\n\n    a * b"
    assert build_api.markdown(text) == "\\<prefix> and K\\*H, `<a*b>`, ``x * y``\n\n    a * b"
