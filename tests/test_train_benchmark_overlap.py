"""HumanEval's texts in training data are found, also indented or quoted otherwise."""

import gzip
import json
from pathlib import Path

import pytest

from jaxcoder.errors import ConfigError
from train.benchmark_overlap import overlaps, read_human_eval

PROMPT = (
    'from typing import List\n\n\ndef runs(values: List[int]) -> List[int]:\n    """ Give the '
    "length of each run of equal values,\n    in the order in which the runs begin.\n"
    '    >>> runs([1, 1, 2])\n    [2, 1]\n    """\n'
)
SOLUTION = (
    "    lengths = []\n    for index, value in enumerate(values):\n"
    "        if index and value == values[index - 1]:\n            lengths[-1] += 1\n"
    "        else:\n            lengths.append(1)\n\n    return lengths\n"
)
SHORT = {"prompt": 'def one():\n    """One."""\n', "canonical_solution": "    return 1\n"}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl.gz"
    rows = [{"prompt": PROMPT, "canonical_solution": SOLUTION}, SHORT]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


@pytest.mark.parametrize(
    "text",
    [
        PROMPT + SOLUTION,
        PROMPT,
        "class A:\r\n" + "".join(f"\t{line}\r\n" for line in (SOLUTION).splitlines()),
        "'''" + PROMPT.split('"""')[1] + "'''",
        "x = 1\n" + SOLUTION.replace("\n\n", "\n") + "y = 2",
    ],
)
def test_a_copy_is_found(tasks: Path, text: str) -> None:
    """A docstring or a solution is enough; indentation, quotes, blank and CRLF lines hide none."""
    assert overlaps(text, read_human_eval(tasks))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        SOLUTION.replace("lengths.append(1)", "lengths += [1]"),
        PROMPT.replace("[2, 1]", "[2]"),
        SHORT["prompt"] + SHORT["canonical_solution"],
    ],
)
def test_what_is_no_copy(tasks: Path, text: str) -> None:
    """A changed line, or a text so short that anyone might write it, is no overlap."""
    assert not overlaps(text, read_human_eval(tasks))


def test_every_task_of_humaneval_is_recognised(shared_data: Path) -> None:
    """All 164 prompts with solution are found; the standard library's json package is not."""
    path = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    benchmark = read_human_eval(path)
    missed = [
        row["task_id"]
        for row in rows
        if not overlaps(row["prompt"] + row["canonical_solution"], benchmark)
    ]
    assert len(rows) == 164
    assert missed == []
    assert not overlaps(Path(json.__file__).read_text(encoding="utf-8"), benchmark)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tasks"),
        (b"{}", r"HumanEval\.jsonl:1: .*expected the strings prompt and canonical_solution"),
        (b"{", r"HumanEval\.jsonl:1: .*not valid JSON"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_not_humaneval(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A wrong path must not pass for "no overlap"."""
    path = tmp_path / "HumanEval.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_human_eval(path)


def test_a_cut_gzip_file(tasks: Path) -> None:
    """Half of the benchmark must not pass for all of it."""
    tasks.write_bytes(tasks.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="damaged gzip file"):
        read_human_eval(tasks)
