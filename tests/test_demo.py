"""The model inside the package: whole, small, and what its card says."""

import hashlib
import json
import re
from pathlib import Path

import jax
import pytest

from benchmarks.demo_card import PICTURE, aims, demo_figures
from benchmarks.demo_functions import cut_at_dedent, parses
from jaxcoder import Generator
from jaxcoder.manifest import MANIFEST_FILE

PROJECT = Path(__file__).parents[1]
DEMO = PROJECT / "jaxcoder" / "demo"
CARD = (DEMO / "README.md").read_text(encoding="utf-8")
CORPUS = json.loads((PROJECT / "docs" / "demo-corpus.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo() -> Generator:
    return Generator.from_pretrained()


def test_every_file_is_the_one_that_was_exported() -> None:
    """Loading compares the hashes of what it reads; these are all of them."""
    manifest = json.loads((DEMO / MANIFEST_FILE).read_text(encoding="utf-8"))
    names = {path.name for path in DEMO.iterdir()}
    assert names == {*manifest["files"], "model.safetensors", MANIFEST_FILE}
    for name, expected in manifest["files"].items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == expected, name


def test_it_has_the_architecture_and_special_tokens_of_the_published_model(demo: Generator) -> None:
    config, tokenizer = demo.config, demo.tokenizer
    assert (config.model_type, config.multi_query, config.n_kv_head) == ("gpt_bigcode", True, 1)
    assert config.activation_function == "gelu_pytorch_tanh"
    assert config.n_positions >= 512
    assert (tokenizer.end_of_text, *tokenizer.fim) == (0, 1, 2, 3, 4)
    assert len(tokenizer.encode("1234567")) == 7, "digits stand apart"
    leaves = jax.tree.leaves(demo.params)
    assert f"{sum(leaf.size for leaf in leaves):,} parameters" in CARD


def test_it_writes_python(demo: Generator) -> None:
    """Not a measure, see the card: what is loaded knows that a function goes on with a body."""
    header = '    def is_empty(self):\n        """Return whether there is no item."""'
    completion = demo.generate("class Box:\n" + header, max_new_tokens=48)
    body = cut_at_dedent(completion.text, 8 * " ", has_ended=completion.finish_reason == "eos")
    assert parses(header, body.text)


def test_figures_of_the_card_are_those_that_were_measured() -> None:
    path = PROJECT / "benchmarks" / "results" / "demo_model.json"
    lengths, figures = demo_figures(json.loads(path.read_text(encoding="utf-8")))
    assert len(lengths) == 2 + 3 and len(figures) == 2 + 7 + 1
    for row in lengths + figures:
        assert row in CARD


def test_aims_are_reached_but_for_infilling() -> None:
    """A model that is worse in one of these is not shipped unseen; nor a card that hides one."""
    path = PROJECT / "benchmarks" / "results" / "demo_model.json"
    rows = list(aims(json.loads(path.read_text(encoding="utf-8"))))
    assert [row.endswith("| yes |") for row in rows] == [True, True, True, True, False]
    assert "infilled" in rows[-1]
    for row in rows:
        assert row in CARD


def test_card_names_every_source_with_its_licence() -> None:
    for package in CORPUS["packages"]:
        row = f"| {package['package']} | {package['version']} | {package['licence']} |"
        assert row in CARD
    (held_out,) = re.findall(r"^Held out whole are .*?\.$", CARD, re.MULTILINE | re.DOTALL)
    for name in [*CORPUS["held_out_standard_library"], CORPUS["held_out_third_party"]]:
        assert re.search(rf"\b{name}\b", held_out.partition(":")[2]), name


def test_card_says_how_it_was_made() -> None:
    train = ("train.demo_corpus", "train stdlib", "train export")
    for command in (*train, "benchmarks.demo_model", "benchmarks.demo_card"):
        assert f"python -m {command}" in CARD
    assert f"({PICTURE})" in CARD
    assert (DEMO / PICTURE).read_text(encoding="utf-8").lstrip().startswith("<?xml")
