"""Every number in README.md comes from a committed file, or is on a short list with its reason.

Each claim is written anew from the file that it is from, and must stand in README word for word.
What is left of README when claims, reasons, names and code are taken out may have no number.
"""

import json
import math
import re
import tomllib
from pathlib import Path

import pytest
from documents import PROJECT, read

from jaxcoder import ModelConfig
from jaxcoder.byte_level import spelled_bytes
from jaxcoder.hf_names import tensor_shapes

README = read("README.md")
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve"}

# A row of the table, made of the settings -> the file in benchmarks/results that it is from.
ROWS = {
    "decode, {dtype}, {batch} prompt, tokens/s": [
        "decode-float32-batch1",
        "decode-bfloat16-batch1",
    ],
    "decode, {dtype}, {batch} prompts, tokens/s": ["decode-float32-batch8"],
    "prefill, {dtype}, {length:,} tokens, tokens/s": [
        "prefill-float32-1024",
        "prefill-bfloat16-1024",
    ],
    "training step, {dtype}, {rows} x {length:,}, tokens/s": [
        "train-step-float32-1x2048",
        "train-step-bfloat16-1x2048",
    ],
    "training step, {dtype}, {rows} x {length:,}, EPYC, tokens/s": [
        "train-step-float32-1x2048-epyc"
    ],
    "its peak memory, {dtype}, EPYC, GB": ["train-step-float32-1x2048-epyc"],
}

BY_REASON = {
    "## Ten lines of Python": "counted in test_readme.py",
    "## The two snippets": "of the published model card",
    "both from 1, columns": "how places are counted, not a measurement",
    "first character of line 12": "an example of LINE:COL",
    "Exit status 2": "of the command line, tested in test_cli.py",
    "no token for 14 of the 256 bytes. 13 of them": "counted below",
    "U+40000 to U+7FFFF": "code points",
    "other, F1,": "a byte",
    "two swapped tensors": "an example",
    "two tokens are": "an example",
}
"""Words of README with a number that is no figure -> why; each must occur."""

NAMES = r"float32|float64|bfloat16|GPT-2|UTF-8|Apache-2\.0|AVX-512|AVX2"


def result(name: str) -> dict:
    """What a benchmark found."""
    return json.loads(read(f"benchmarks/results/{name}.json"))


def like(value: float) -> str:
    """As the table shows it: three digits or the whole number, and a thousands separator."""
    decimals = 2 if value < 10 else 1 if value < 120 else 0
    return f"{value:,.{decimals}f}"


def row(label: str, content: dict) -> str:
    """A line of the table, from a result."""
    if "memory" in label:
        ours, theirs = (content["peak_bytes"][side] / 1e9 for side in ("jaxcoder", "transformers"))
        figures = [ours, theirs, ours / theirs]
    else:
        ratio = content["ratios"]["jaxcoder / transformers"]
        parts = (content["jaxcoder"], content["transformers"], ratio)
        figures = [part["tokens_per_second"]["median"] for part in parts]
    named = label.format(**content["settings"])
    return f"| {named} | " + " | ".join(like(figure) for figure in figures) + " |"


def claims() -> list[str]:
    """What README says in numbers, made of the files that the numbers are from."""
    config = ModelConfig.tiny_starcoder()
    parameters = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    demo = json.loads(read("jaxcoder/demo/config.json"))
    demo_bytes = (PROJECT / "jaxcoder/demo/model.safetensors").stat().st_size
    project = tomllib.loads(read("pyproject.toml"))["project"]
    environments = [
        (result(name)["environment"], "EPYC" in label)
        for label, names in ROWS.items()
        for name in names
    ]
    xeon_dates, epyc_dates = (
        " and ".join(sorted({each["date"] for each, is_epyc in environments if is_epyc == wanted}))
        for wanted in (False, True)
    )
    ((jax_version, cores),) = {(each["versions"]["jax"], each["cores"]) for each, _ in environments}
    for each, is_epyc in environments:
        assert ("AMD EPYC" if is_epyc else "Intel(R) Xeon(R)") in each["processor"]
    context = result("context-float32")
    assert 0.95 < context["ratio_8192_to_512"]["median"] < 1.05
    return [
        f"the {parameters / 1e6:.0f}M GPT-BigCode model",
        f"({parameters:,} parameters, {4 * parameters / 1e6:.0f} MB, float32)",
        f"{WORDS[demo['n_layer']]} layers and {demo_bytes / 1e6:.0f} MB",
        f"Python {project['requires-python'].removeprefix('>=')} or newer",
        f"{WORDS[cores].title()} cores of an Intel Xeon (AVX-512), {xeon_dates}, and",
        f"an AMD EPYC\n(AVX2), {epyc_dates};",
        f"jax {jax_version}; random weights",
        f"published {parameters / 1e6:.0f}M shape",
        *(row(label, result(name)) for label, names in ROWS.items() for name in names),
        "256 tokens of context cost the same whether 8,192 or 512 are allowed",
        f"The context is {config.n_positions:,} tokens",
    ]


def unaccounted(text: str) -> list[str]:
    """Numbers of README, in digits or in words, that nothing accounts for."""
    for stated in sorted([*claims(), *BY_REASON], key=len, reverse=True):
        text = text.replace(stated, " ")
    text = re.sub(r"^```.*?^```$", " ", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)  # code, and where links lead
    text = re.sub(NAMES, " ", text)
    spelled = "|".join(WORDS.values())
    return re.findall(rf"\d[\d.,]*|\b(?:{spelled})\b", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("claim", claims())
def test_claim_stands_as_its_file_has_it(claim: str) -> None:
    assert claim in README


def test_every_number_has_a_file_or_a_reason() -> None:
    assert unaccounted(README) == []


@pytest.mark.parametrize("stated", BY_REASON)
def test_every_reason_is_needed(stated: str) -> None:
    assert stated in README


@pytest.mark.parametrize(
    ("stated", "changed"),
    [("118.9", "119.9"), ("657 MB", "656 MB"), ("four layers", "five layers"), ("2.0", "2.0 in 3")],
)
def test_a_wrong_number_would_be_seen(stated: str, changed: str) -> None:
    """Negative control: also one more than there is."""
    assert stated in README
    assert unaccounted(README.replace(stated, changed, 1))


def test_bytes_without_a_token_are_those_that_utf8_does_not_use(shared_data: Path) -> None:
    """All but F1; of the published tokenizer."""
    path = shared_data / "starcoder-tokenizer" / "tokenizer.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    spelled = {data for token in vocab if len(data := spelled_bytes(token)) == 1}
    missing = {byte for byte in range(256) if bytes([byte]) not in spelled}
    assert missing == {0xC0, 0xC1, *range(0xF5, 0x100)} | {0xF1}
    assert (len(missing), len(missing - {0xF1})) == (14, 13)


def test_the_table_has_these_rows_alone() -> None:
    (table,) = re.findall(r"^<!-- measured -->$(.*)^<!-- /measured -->$", README, re.M | re.S)
    rows = [line for line in table.splitlines() if line.startswith("| ") and line[2] != "|"]
    assert len(rows) == sum(map(len, ROWS.values()))
