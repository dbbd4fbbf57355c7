"""The API reference is current, and every public name says what it takes, gives and refuses.

docs/build_api.py makes docs/api/*.md from the docstrings; `make docs` runs it. Public is what these
pages list: among it every module that a notebook or a guide imports from.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator

import pytest
from documents import DOCUMENTS, PROJECT, blocks, read

import jaxcoder
from colab.build import NOTEBOOKS

PACKAGES = ("jaxcoder", "conversion", "train", "benchmarks", "colab")

_SPEC = importlib.util.spec_from_file_location("build_api", PROJECT / "docs" / "build_api.py")
build_api = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build_api)

NOTATION = (PROJECT / "docs" / "notation.md").read_text(encoding="utf-8")
COMMON = set(re.findall(r"^\| `(\w+)` \| [^|]* \|$", NOTATION, re.MULTILINE))
"""Arguments that docs/notation.md explains once for all docstrings."""
SHAPE = re.compile(r"\[[^\]\n]*\]|\baxis\b|\baxes\b")
"""What says how large an array is: [B, T], or which of its axes matter."""
MEASURED = re.compile(
    r"(?:^|(?<!z)_)(?:loss|losses|nll|logprobs?|log_softmax|cross_entropy|kl|entropy"
    r"|flops|speed|throughput|time|duration|memory)$"
)
"""Names of quantities that have a unit and do not say it, as `seconds` and `bytes` do."""
UNIT = re.compile(
    r"\bnats?\b|\bbits?\b|[Nn]atural.log|log.softmax|-ln\b|\bseconds?\b|per second|\bbytes?\b"
)
SOURCED = """
jaxcoder.activations jaxcoder.byte_level jaxcoder.config jaxcoder.fim jaxcoder.hf_names
jaxcoder.inspect.logit_lens jaxcoder.layers jaxcoder.model jaxcoder.reference
jaxcoder.safetensors_header jaxcoder.sampling jaxcoder.self_attention jaxcoder.tokenizer_file
conversion.layouts train.fim train.headers train.lora train.loss train.metrics.flops_per_token
train.near_duplicates train.optimizer benchmarks.intervals.wilson
""".split()  # noqa: SIM905
"""Modules and functions that state somebody else's formula or format, and so name its source."""


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


def is_named(name: str, docstring: str) -> bool:
    """Whether a parameter is listed, in backticks, or a word of the first sentence; not a letter.

    Any word of the docstring was enough once: a was found in "a list", text in "as text".
    """
    if name in listed_arguments(docstring):
        return True
    first_sentence = re.split(r"\.(?:\s|$)", docstring)[0]
    code = re.findall(r"``.*?``|`[^`]*`", docstring)
    places = [*code, first_sentence] if len(name) > 1 else code
    return any(re.search(rf"\b{name}\b", place) for place in places)


def problems(source: str, *, in_reference: bool) -> list[str]:
    """What the docstrings of a file lack; `in_reference`: more is asked of what is listed there."""
    found = []
    for name, node in definitions(source):
        docstring = ast.get_docstring(node)
        if docstring is None:
            if node.name not in build_api.FRAMEWORK_METHODS:
                found.append(f"{name}: no docstring")
            continue
        found += unit_problems(name, node, docstring)
        if isinstance(node, ast.ClassDef):
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
            if not is_named(each, docstring):
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


def unit_problems(name: str, node: ast.FunctionDef | ast.ClassDef, docstring: str) -> Iterator[str]:
    """Measured quantities, returned or held by a field, that say no unit."""
    if isinstance(node, ast.ClassDef):
        described = dict(build_api.documented_values(node.body))
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        told = [(field.target.id, field.annotation, ast.unparse(field)) for field in fields]
        values = [(what, kind, described.get(text, docstring)) for what, kind, text in told]
    else:
        values = [(node.name, node.returns, docstring)]
    for what, kind, text in values:
        is_number = is_array(kind) or "float" in ast.unparse(kind or ast.Constant(None))
        if is_number and MEASURED.search(what) and not UNIT.search(text):
            yield f"{name}: {what} has no unit"


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
    if path.parent.name != "colab" or path.stem not in NOTEBOOKS
)


def module_of(file: str) -> str:
    """The dotted name of a file of `FILES`."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = set(map(module_of, FILES))


@pytest.mark.parametrize("file", FILES)
def test_public_names_are_documented(file: str) -> None:
    """A name without a docstring is not in the reference; one that lists arguments lists all."""
    source = (PROJECT / file).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{file}: no docstring"
    found = problems(source, in_reference=module_of(file) in REFERENCE)
    assert not found, "\n".join(f"{file}: {problem}" for problem in found)


PLANTED = {
    "def f():\n    pass": "no docstring",
    "class A:\n    'A.'\n    def m(self):\n        pass": "A.m: no docstring",
    "def f(a, b):\n    '''F.\n\n    Args:\n      a: one.\n    '''": "the parameter b is not named",
    "def f(a):\n    '''F.\n\n    Args:\n      a: one.\n      z: old.\n    '''": "Args lists z",
    "def f(ids, size):\n    'F of ids.'": "the parameter size is not named",
    "def f(ids, size):\n    'F of ids. Of any size.'": "the parameter size is not named",
    "def f(ids, a):\n    'F of ids: a sum.'": "the parameter a is not named",
    "def f():\n    'F.'\n    raise ValueError": "no section Raises",
    "def f(a: jax.Array):\n    'F of a.'": "states no shape",
    "class A(NamedTuple):\n    'A.'\n    x: int": "the field x is not described",
    "class A(NamedTuple):\n    'A.'\n    x: Array\n    'X.'": "the field x has no shape",
    "class A(NamedTuple):\n    'A.'\n    loss: float\n    'Of a step.'": "loss has no unit",
    "def peak_flops() -> float | None:\n    'The peak.'": "peak_flops has no unit",
}


@pytest.mark.parametrize("source", PLANTED)
def test_planted_gap_is_found(source: str) -> None:
    """Negative control of the test above."""
    (found,) = problems(source, in_reference=True)
    assert PLANTED[source] in found


def test_what_is_named_is_not_reported() -> None:
    """The twin of the planted gaps."""
    told = "F of `a` and ids, ``b * 2``.\n\n    Args:\n      c, size: two.\n    "
    assert not problems(f"def f(a, b, c, ids, size):\n    '''{told}'''", in_reference=True)
    field = "loss: float\n    'Mean, in nats.'"
    assert not problems(f"class A(NamedTuple):\n    'A.'\n    {field}", in_reference=True)


def readers_python() -> dict[str, str]:
    """What a reader runs: the code of each notebook and the Python blocks of each document."""
    found = {}
    for name in NOTEBOOKS:
        cells = json.loads(read(f"colab/{name}.ipynb"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found[f"colab/{name}.ipynb"] = "\n".join(code)
    of_documents = {document: blocks("python", read(document)) for document in DOCUMENTS}
    return found | {name: "\n".join(code) for name, code in of_documents.items() if code}


def imported_modules(source: str) -> set[str]:
    """The modules of this project that a piece of Python imports, or imports names from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in (start + alias.name for alias in node.names):
                while name and name not in MODULES:
                    name = name.rpartition(".")[0]
                found.add(name)
    return found - {""}


@pytest.mark.parametrize("place", readers_python())
def test_what_readers_import_is_in_the_reference(place: str) -> None:
    """The names of jaxcoder itself have entries by themselves, see below."""
    assert imported_modules(readers_python()[place]) <= {"jaxcoder", *REFERENCE}


def test_imports_of_readers_are_seen() -> None:
    """Control of the test above, of each form; and a module that no page lists would fail it."""
    found = set().union(*map(imported_modules, readers_python().values()))
    assert {"jaxcoder", "jaxcoder.activations", "colab.models", "conversion.pytorch"} <= found
    source = (
        "import jax\nimport train.leaves\nfrom conversion import layouts\nfrom train.fim import x"
    )
    assert imported_modules(source) == {"train.leaves", "conversion.layouts", "train.fim"}
    assert not imported_modules(source) <= set(REFERENCE)


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
        assert f"\n### {name}\n" in page, name
    for member in ("generate", "stream", "infill", "infill_prompt", "logits", "from_pretrained"):
        assert f"\n#### Generator.{member}\n" in page


@pytest.mark.parametrize("name", SOURCED)
def test_a_formula_names_its_source(name: str) -> None:
    module, _, function = name.rpartition(".")
    if name in MODULES:
        docstring = ast.get_docstring(build_api.parse(name))
    else:
        (node,) = [node for node in build_api.public_definitions(module) if node.name == function]
        docstring = ast.get_docstring(node)
    assert re.search(r"Source|arXiv", docstring), name


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
