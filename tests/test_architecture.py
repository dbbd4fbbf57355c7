"""Who may import whom, and what no file may do: checked on the syntax tree of every package file.

`LIBRARY` is the architecture of jaxcoder as data. An import that it lacks is either a mistake or
a decision; a decision is an edit of the table in the same commit.
"""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxcoder", "conversion", "train", "benchmarks", "colab")


class Allowed(NamedTuple):
    """What a module may import beside the standard library: of jaxcoder, and of others."""

    internal: str = ""
    external: str = ""


# jaxcoder module -> what it may import; lower layers first.
LIBRARY = {
    "errors": Allowed(),
    "diagnostics": Allowed(),
    "problems": Allowed(),
    "fim": Allowed(),
    "text_stream": Allowed(),
    "byte_level": Allowed(),
    "timing": Allowed("", "jax"),
    "invocation": Allowed(),
    "devices": Allowed("diagnostics", "jax"),
    "durable": Allowed("errors"),
    "json_file": Allowed("problems"),
    "config": Allowed("errors problems json_file"),
    "arguments": Allowed("config", "numpy"),
    "hf_names": Allowed("config", "numpy"),
    "reference": Allowed("config", "numpy"),
    "hub": Allowed("errors diagnostics", "huggingface_hub"),
    "tokenizer_pipeline": Allowed("errors problems"),
    "tokenizer_file": Allowed("errors problems json_file byte_level tokenizer_pipeline"),
    "tokenizer": Allowed("errors problems fim byte_level tokenizer_file", "tokenizers numpy"),
    "safetensors_header": Allowed("errors problems json_file hf_names"),
    "safetensors_file": Allowed(
        "errors problems durable json_file safetensors_header", "numpy safetensors ml_dtypes"
    ),
    "shards": Allowed("errors problems json_file hf_names safetensors_header safetensors_file"),
    "tensor_checks": Allowed("errors problems config hf_names shards", "numpy"),
    "manifest": Allowed(
        "errors problems json_file hf_names safetensors_header safetensors_file shards", "numpy"
    ),
    "checkpoint": Allowed(
        "errors problems durable json_file config hf_names safetensors_header safetensors_file "
        "shards tensor_checks manifest",
        "numpy ml_dtypes jax",
    ),
    "cache": Allowed("config", "jax numpy"),
    "sampling": Allowed("config", "jax numpy"),
    "products": Allowed("", "jax"),
    "self_attention": Allowed("products", "jax"),
    "cached_attention": Allowed("products", "jax"),
    "layers": Allowed("config cache products self_attention cached_attention", "jax flax"),
    "model": Allowed("config cache layers products", "jax flax"),
    "generate": Allowed("arguments config cache model sampling", "jax numpy"),
    "completion": Allowed("text_stream timing", "numpy"),
    "row_decoder": Allowed("completion generate model sampling timing tokenizer", "numpy tqdm"),
    "generator": Allowed(
        "errors arguments config fim tokenizer devices hub checkpoint "
        "sampling model generate completion row_decoder",
        "jax numpy",
    ),
    "options": Allowed("arguments devices generator sampling", "tyro"),
    "streams": Allowed("diagnostics"),
    "showcase": Allowed("generator", "jax"),
    "activations": Allowed("cache config model products", "jax flax"),
    "token_losses": Allowed("generate generator model", "jax numpy"),
    "loss_views": Allowed("token_losses", "numpy"),
    "inspect": Allowed(
        "activations arguments config generate generator loss_views model token_losses", "jax numpy"
    ),
    "info": Allowed("arguments config cache generator", "jax"),
}
# These may import anything above them.
MODULES = LIBRARY | {
    "__init__": Allowed(" ".join(LIBRARY)),
    "cli": Allowed(" ".join(["__init__", *LIBRARY]), "jax numpy tyro tqdm"),
    "__main__": Allowed("cli"),
}

# package -> what it may import of the other packages.
REACH = {
    "jaxcoder": "",
    "conversion": "jaxcoder",
    "train": "jaxcoder conversion",
    "benchmarks": "jaxcoder conversion train",
    "colab": "jaxcoder conversion train benchmarks",
}
# package outside the library -> the modules of jaxcoder it may import.
USES = {
    "conversion": (
        "errors problems durable json_file config hf_names reference hub tokenizer tokenizer_file "
        "safetensors_header safetensors_file shards tensor_checks manifest checkpoint cache "
        "sampling model generate"
    ),
    "train": (
        "errors diagnostics problems durable devices json_file config hf_names hub fim tokenizer "
        "shards tensor_checks manifest checkpoint cache sampling products layers model generate "
        "generator"
    ),
    "benchmarks": " ".join(["__init__", *LIBRARY]),
    "colab": "__init__ errors diagnostics devices hub hf_names reference generator inspect",
}

# The model, and what Flax lets stand between its modules.
FLAX_FILES = ("jaxcoder/layers.py", "jaxcoder/model.py", "jaxcoder/activations.py")
ONLY_INSIDE_FUNCTIONS = {
    "torch": ("conversion/", "benchmarks/"),
    "transformers": ("conversion/", "benchmarks/"),
    "huggingface_hub": ("jaxcoder/hub.py", "conversion/download.py"),
    "orbax": ("train/orbax_files.py",),
    "datasets": ("train/hugging_face_data.py",),
}
TRAIN_ONLY = ("optax", "grain", "orbax")
CODE_LOADERS = (
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib"),
    *("shelve", "marshal", "yaml", "jsonpickle"),
)


class Import(NamedTuple):
    """One imported name, absolute and dotted: ``from .a import b`` in jaxcoder is jaxcoder.a.b."""

    name: str
    line: int
    in_function: bool


def source_files() -> list[str]:
    return sorted(
        path.relative_to(PROJECT).as_posix()
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
    )


def imports(source: str, file: str) -> Iterator[Import]:
    """Every name that the import statements of a file bind, in functions too."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            package = file.split("/")[: -node.level] if node.level else []
            base = [*package, *([node.module] if node.module else [])]
            for alias in node.names:
                yield Import(".".join([*base, alias.name]), node.lineno, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def jaxcoder_module(name: str) -> str:
    """The row of `MODULES` that ``jaxcoder.<row>...`` belongs to; a sub-package is one row."""
    row = name.split(".")[1] if "." in name else "__init__"
    return row if row in MODULES else "__init__"


def table_problems(source: str, file: str) -> list[str]:
    """Imports of a jaxcoder file that `MODULES` does not have."""
    module = file.removesuffix(".py").split("/")[1]
    if module not in MODULES:
        return [f"{file}: not in LIBRARY of tests/test_architecture.py; add it with its imports"]
    allowed = MODULES[module]
    problems = []
    for name, line, _ in imports(source, file):
        top = name.partition(".")[0]
        if top == "jaxcoder":
            target = jaxcoder_module(name)
            if target not in (module, *allowed.internal.split()):
                problems.append(f"{file}:{line}: {module} may not import jaxcoder.{target}")
        elif top not in sys.stdlib_module_names and top not in allowed.external.split():
            problems.append(f"{file}:{line}: {module} may not import {top}")
    return problems


def reach_problems(source: str, file: str) -> list[str]:
    """Imports across packages, and of Flax or an optional library in a place not theirs."""
    package = file.partition("/")[0]
    problems = []
    for name, line, in_function in imports(source, file):
        where = f"{file}:{line}"
        top, last = name.partition(".")[0], name.rpartition(".")[2]
        if top in PACKAGES and top != package:
            if top not in REACH[package].split():
                problems.append(f"{where}: {package} may not import {top}")
            elif top == "jaxcoder" and jaxcoder_module(name) not in USES[package].split():
                problems.append(f"{where}: {package} may not import {name}")
        if top in PACKAGES and last.startswith("_") and not last.startswith("__"):
            problems.append(f"{where}: {name} is private")
        if name.startswith("flax.nnx"):
            problems.append(f"{where}: flax.nnx is not used here, flax.linen is")
        if top == "flax" and file not in FLAX_FILES:
            problems.append(f"{where}: flax belongs in {' and '.join(FLAX_FILES)}")
        if top in TRAIN_ONLY and package != "train":
            problems.append(f"{where}: {top} belongs in train/")
        places = ONLY_INSIDE_FUNCTIONS.get(top)
        if places and not file.startswith(places):
            problems.append(f"{where}: {top} belongs in {', '.join(places)}")
        elif places and not in_function:
            problems.append(f"{where}: import {top} inside the function that needs it")
    return problems


def code_execution_problems(source: str, file: str) -> list[str]:
    """Whatever can run code that a model folder brings."""
    problems = [
        f"{file}:{line}: {name} can run what a file says"
        for name, line, _ in imports(source, file)
        if name.partition(".")[0] in CODE_LOADERS
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            problems += [f"{file}:{node.lineno}: {text}" for text in call_problems(node, file)]
        elif isinstance(node, ast.Dict):
            problems += [
                f"{file}:{node.lineno}: trust_remote_code as a key"
                for key in node.keys
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
            ]
    return problems


def call_problems(call: ast.Call, file: str) -> Iterator[str]:
    called = ast.unparse(call.func).removeprefix("builtins.")
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called in ("eval", "exec", "__import__"):
        yield f"{called}() runs text as code"
    for name in ("trust_remote_code", "allow_pickle"):
        if arguments.get(name, "False") != "False":
            yield f"{name} is not False"
    if called == "torch.load" and not file.startswith("conversion/"):
        yield "torch.load belongs in conversion/"
    elif called == "torch.load" and arguments.get("weights_only") != "True":
        yield "torch.load without weights_only=True"


CHECKS = (reach_problems, code_execution_problems)


@pytest.mark.parametrize("file", source_files())
def test_file_keeps_to_the_import_table_and_runs_no_foreign_code(file: str) -> None:
    source = (PROJECT / file).read_text(encoding="utf-8")
    problems = [problem for check in CHECKS for problem in check(source, file)]
    if file.startswith("jaxcoder/"):
        problems += table_problems(source, file)
    assert not problems, "\n".join(problems)


def test_table_has_layers() -> None:
    """A cycle in what is allowed would let one into the code."""
    graph = {name: set(allowed.internal.split()) for name, allowed in MODULES.items()}
    assert set().union(*graph.values()) <= set(graph)
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


# (check, file, source, a part of the one message it must give)
PLANTED = [
    (table_problems, "jaxcoder/config.py", "import numpy", "may not import numpy"),
    (table_problems, "jaxcoder/config.py", "from .model import x", "jaxcoder.model"),
    (table_problems, "jaxcoder/config.py", "from . import model", "jaxcoder.model"),
    (table_problems, "jaxcoder/config.py", "from jaxcoder import Generator", "jaxcoder.__init__"),
    (table_problems, "jaxcoder/fim.py", "def f():\n    import jax", "may not import jax"),
    (table_problems, "jaxcoder/new_idea.py", "", "not in LIBRARY"),
    (reach_problems, "jaxcoder/generate.py", "import flax.linen as nn", "flax belongs in"),
    (reach_problems, "jaxcoder/model.py", "from flax import nnx", "nnx"),
    (reach_problems, "jaxcoder/model.py", "from conversion import parity", "conversion"),
    (reach_problems, "jaxcoder/model.py", "from .layers import _hidden", "private"),
    (reach_problems, "train/loop.py", "import jaxcoder.cli", "train may not import"),
    (reach_problems, "jaxcoder/model.py", "import torch", "torch belongs in"),
    (reach_problems, "jaxcoder/generate.py", "import optax", "optax belongs in"),
    (reach_problems, "jaxcoder/hub.py", "import huggingface_hub", "inside the function"),
    (reach_problems, "train/loop.py", "from benchmarks.proof import x", "train may not import"),
    (reach_problems, "benchmarks/proof.py", "import colab.models", "benchmarks may not import"),
    (reach_problems, "colab/models.py", "import jaxcoder.shards", "colab may not import"),
    (reach_problems, "colab/models.py", "import torch", "torch belongs in"),
    (reach_problems, "train/loop.py", "def f():\n    import torch", "torch belongs in"),
    (reach_problems, "conversion/parity.py", "import torch", "inside the function"),
    (reach_problems, "conversion/x.py", "class A:\n    import torch", "inside the function"),
    (code_execution_problems, "jaxcoder/x.py", "import pickle", "pickle"),
    (code_execution_problems, "conversion/x.py", "def f():\n    from joblib import load", "joblib"),
    (code_execution_problems, "jaxcoder/x.py", "eval(text)", "eval()"),
    (code_execution_problems, "jaxcoder/x.py", "import builtins\nbuiltins.exec(text)", "exec()"),
    (code_execution_problems, "train/x.py", "import yaml\nyaml.load(text)", "yaml"),
    (code_execution_problems, "conversion/x.py", "m(p, trust_remote_code=True)", "trust_remote"),
    (code_execution_problems, "conversion/x.py", "m(p, trust_remote_code=flag)", "trust_remote"),
    (code_execution_problems, "conversion/x.py", "k = {'trust_remote_code': True}", "as a key"),
    (code_execution_problems, "jaxcoder/x.py", "np.load(p, allow_pickle=True)", "allow_pickle"),
    (code_execution_problems, "conversion/x.py", "torch.load(p)", "without weights_only"),
    (code_execution_problems, "conversion/x.py", "torch.load(p, weights_only=False)", "without"),
    (code_execution_problems, "jaxcoder/x.py", "torch.load(p, weights_only=True)", "belongs in"),
]


@pytest.mark.parametrize(("check", "file", "source", "message"), PLANTED)
def test_planted_violation_is_found(check, file: str, source: str, message: str) -> None:
    found = check(source, file)
    assert len(found) == 1, found
    assert message in found[0]


def test_what_is_allowed_is_not_reported() -> None:
    """The twin of the planted violations: the same statements in their right place."""
    allowed = {
        "jaxcoder/model.py": "import jax\nfrom flax import linen as nn\nfrom .cache import KVCache",
        "jaxcoder/hub.py": "def f():\n    import huggingface_hub.errors",
        "benchmarks/decode.py": "import jax\nfrom jaxcoder import Generator",
        "conversion/parity.py": (
            "import re\ndef f():\n    import torch\n    re.compile('x')\n"
            "    torch.load(p, map_location='cpu', weights_only=True)\n    model.eval()"
        ),
    }
    for file, source in allowed.items():
        assert not [problem for check in CHECKS for problem in check(source, file)], file
        if file.startswith("jaxcoder/"):
            assert not table_problems(source, file)


def test_importing_jaxcoder_is_light() -> None:
    """It loads nothing of the command line, the Hub, PyTorch or training."""
    heavy = ("tyro", "huggingface_hub", "torch", "transformers", *TRAIN_ONLY)
    assert not loaded_by("jaxcoder", heavy)


def test_loaded_modules_are_seen() -> None:
    """Negative control of the test above."""
    assert loaded_by("tqdm", ("tqdm", "tyro")) == ["tqdm"]


def loaded_by(module: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh interpreter holds after ``import module``."""
    code = f"import sys, {module}; print(*[name for name in {names!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()
