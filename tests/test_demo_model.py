"""The figures of the demo model's card: what is cut, counted and compared, on texts and by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import demo_bits, demo_functions, demo_infill, demo_model, intervals
from benchmarks.demo_functions import (
    cut_at_dedent,
    find_headers,
    gets_stuck,
    is_empty,
    is_trivial,
    parses,
)
from jaxcoder import Generator
from train.pieces import RESERVE

pytest_plugins = ["tiny_checkpoint"]

SOURCE = '''\
import math


class Circle:
    """A circle."""

    @property
    def area(self):
        """Its area.

Text at the margin.
        """
        return math.pi * self.radius**2

    def one_line(self): "No body after it."

    def only_docstring(self):
        """Nothing else."""


async def fetch(
    name,
):
    """Fetch it."""  # with a comment
    return name


def double(number):
    """Twice the number."""
    return 2 * number
'''

# Headers


def test_headers_are_functions_with_a_body_after_their_docstring():
    """A header without a body to write, or with text after its docstring, would not be fair."""
    area, double = find_headers_sorted(SOURCE)
    assert area.header.startswith("    def area(self):\n") and area.header.endswith('\n        """')
    assert area.indent == " " * 8
    assert area.before.endswith("    @property\n")
    assert area.after.startswith("\n        return math.pi")
    assert double.header == 'def double(number):\n    """Twice the number."""'
    for header in (area, double):
        assert header.before + header.header + header.after == SOURCE


def find_headers_sorted(text: str) -> list[demo_functions.Header]:
    return sorted(find_headers(text), key=lambda header: len(header.before))


def test_files_whose_lines_the_syntax_tree_counts_in_another_way_are_passed_over():
    """A form feed or a bare CR is a line's end to str.splitlines and not to the tree."""
    assert not list(find_headers(SOURCE.replace("\n", "\r\n")))
    assert not list(find_headers(SOURCE + "\f"))


# Cutting


@pytest.mark.parametrize(
    ("completion", "text", "ending"),
    [
        ("\n    a\n\n    b\ndef", "\n    a\n\n    b", "dedent"),
        ("\n    a\n        b\n  c\n", "\n    a\n        b", "dedent"),
        ("\n    a\n    b", "\n    a", "length"),
        ("\n    a\n", "\n    a", "length"),
        ("\n    a\nd", "\n    a", "dedent"),
        ("\n    a\n  ", "\n    a", "length"),
        ("\ndef f():", "", "dedent"),
        ("", "", "length"),
        (" + x\n    a\nb", " + x\n    a", "dedent"),
    ],
)
def test_body_ends_before_the_first_line_indented_less(completion: str, text: str, ending: str):
    """Blank lines end nothing; without a dedent the last line is half a line and goes."""
    assert cut_at_dedent(completion, "    ", has_ended=False) == (text, ending)


def test_end_of_text_keeps_the_last_line():
    """A model that wrote the end of text has finished its last line."""
    assert cut_at_dedent("\n    a\n    b", "    ", has_ended=True) == (
        "\n    a\n    b",
        "end of text",
    )
    assert cut_at_dedent("\n    a\nb", "    ", has_ended=True).ending == "dedent"


# Judging

HEADER = '    def f(self):\n        """Do.\n\nAt the margin.\n        """'


@pytest.mark.parametrize(
    ("body", "is_good"),
    [
        ("\n        return 1", True),
        ("\n        x = '''\nat the margin\n'''\n        return x", True),
        ("\n        return (1,", False),
        ("\n        if self:", False),
        ("\n            return 1\n        return 2", False),
        ("", False),
        ("\n        # nothing", False),
        ("\n    x = 1", False),
        ("\n        return '\\d'", True),
        ("\n        \0", False),
    ],
)
def test_parses_means_a_function_with_a_statement(body: str, is_good: bool):
    """Header and docstring alone parse too; that is no body."""
    assert parses(HEADER, body) is is_good
    at_margin = "\n".join(line.removeprefix("    ") for line in (HEADER + body).split("\n"))
    header, body = at_margin[: len(HEADER) - 8], at_margin[len(HEADER) - 8 :]
    assert parses(header, body) is is_good


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("", "empty"),
        ("\n    # to do\n\n", "empty"),
        ("\n    pass", "trivial"),
        ("\n    ...\n\n    pass  # later\n    # pass", ""),
        ("\n    ...\n\n    pass\n    # pass", "trivial"),
        ("\n    x = 1\n    x = 1", "trivial"),
        ("\n    x = 1\n    x = 1\n    x = 1", "trivial stuck"),
        ("\n    y = 0\n    x = 1\n    x = 1\n    x = 1\n    return x", "stuck"),
        ("\n    x = 1\n    x = 1\n    return x", ""),
        ("\n    x = 1\n    y = 2\n    x = 1\n    y = 2", ""),
        ("\n    return 1", ""),
        ("\n    f(\n        [\n            1\n        ]\n    )\n    )\n    )", ""),
        ("\n    if x:\n        pass\n    return y", ""),
    ],
)
def test_bodies_that_say_nothing(body: str, kinds: str):
    """Only pass, ..., or a repeated line; nothing; a line three times in a row: each by itself."""
    judges = {"trivial": is_trivial, "empty": is_empty, "stuck": gets_stuck}
    assert {name for name, judge in judges.items() if judge(body)} == set(kinds.split())


def test_true_bodies_are_good(generator: Generator):
    """The control: what the files themselves say passes, so a failure is the model's."""
    texts = {"a.py": SOURCE, "b.py": SOURCE.replace("double", "twice")}
    result = demo_functions.function_bodies(generator, texts, count=4)
    true, written = result["true_text"], result["model"]
    assert true["parses"]["count"] == 4
    assert [true[name]["count"] for name in ("trivial", "empty", "stuck")] == [0, 0, 0]
    assert written["parses"]["of"] == 4
    assert sum(written["endings"].values()) == 4
    assert result == demo_functions.function_bodies(generator, texts, count=4)


def test_too_few_functions_are_named(generator: Generator):
    """Fewer than asked for would be a figure with a wrong interval."""
    with pytest.raises(ValueError, match=r"held_out: 2 functions .* expected 3 or more"):
        demo_functions.function_bodies(generator, {"a.py": SOURCE}, count=3)


# Infill


def test_holes_are_whole_lines_after_lines_with_text():
    """Putting prefix, line and suffix together gives the file; short lines are no holes."""
    holes = list(demo_infill.find_holes(SOURCE))
    assert holes
    for hole in holes:
        assert hole.prefix + "\n" + hole.line + hole.suffix == SOURCE
        assert len(hole.line.strip()) >= 6 and hole.prefix[-1:].strip()
    lines = [hole.line for hole in holes]
    assert "        return math.pi * self.radius**2" in lines
    assert "    name," not in lines and "):" not in lines
    assert "    def only_docstring(self):" not in lines  # after a blank line


@pytest.mark.parametrize(
    ("completion", "line"),
    [("\n    x = 1  \nrest", "    x = 1"), ("\n    x", "    x"), (" y\n    x", None), ("", None)],
)
def test_written_line(completion: str, line: str | None):
    """Both ways of writing are cut alike; a continuation of the line before is no new line."""
    assert demo_infill.written_line(completion) == line


def test_infill_is_compared_on_the_same_lines(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
):
    """With a model that copies what it is shown, each way is credited with what it wrote."""
    texts = {"a.py": SOURCE}
    holes = demo_infill._choose(texts, generator.config.n_positions, count=8, seed=0)
    asked = []

    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

    def generate(prompts, *, max_new_tokens):
        asked.append((len(prompts), max_new_tokens))
        right = 6 if len(asked) == 1 else 2
        return [Answer(f"\n{hole.line}\nmore" if i < right else "") for i, hole in enumerate(holes)]

    monkeypatch.setattr(generator, "generate", generate)
    result = demo_infill.compare_infill(generator, texts, count=8)
    assert asked == [(8, demo_infill.NEW_TOKENS)] * 2
    assert (result["psm"]["count"], result["left_to_right"]["count"]) == (6, 2)
    assert result["ratio"]["value"] == 3
    assert result["psm_minus_twice_left_to_right"]["value"] == 0.25
    low, high = result["psm_minus_twice_left_to_right"]["interval"]
    assert low < 0.25 < high


def test_ratio_to_nothing_is_none(generator: Generator):
    """A random model matches no line: JSON has no infinity, and 0/0 is no ratio."""
    result = demo_infill.compare_infill(generator, {"a.py": SOURCE}, count=4)
    assert result["ratio"] == {"value": None, "interval": [None, None]}
    json.dumps(result, allow_nan=False)


# Bits per byte


@pytest.mark.parametrize(("tokens", "size"), [(1, 8), (2, 8), (9, 8), (10, 8), (57, 8), (20, 1)])
def test_every_token_but_the_first_is_scored_once(tokens: int, size: int):
    """A token counted twice or never would make the figure wrong by its share."""
    windows = demo_bits.plan_windows(tokens, size)
    scored = [target for window in windows for target in range(window.scored, window.stop)]
    assert scored == list(range(1, tokens))
    for number, window in enumerate(windows):
        assert window.stop - window.start - 1 <= size
        # Context: the inputs up to the first scored target.
        assert number == 0 or window.scored - window.start >= size // 2


def test_bits_per_byte_is_the_sum_over_files(generator: Generator):
    """Against each file's logits in one pass, the same windows spelled out."""
    texts = {"a.py": SOURCE, "b.py": "x = 'é'\n", "c.py": "", "d.py": SOURCE * 3}
    result = demo_bits.bits_per_byte(generator, texts)
    size, bits = generator.config.n_positions - RESERVE, 0.0
    for text in filter(None, texts.values()):
        ids = np.array(generator.tokenizer.encode(text))
        bits += math.log2(generator.config.vocab_size)
        for start, scored, stop in demo_bits.plan_windows(len(ids), size):
            logits = np.asarray(generator.logits(ids[None, start : stop - 1])[0], np.float64)
            logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            targets = np.arange(scored, stop)
            bits -= logprobs[targets - start - 1, ids[targets]].sum() / math.log(2)
    sizes = sum(len(text.encode()) for text in texts.values())
    assert result["bits_per_byte"] == pytest.approx(bits / sizes, rel=1e-5)
    assert (result["files"], result["bytes"]) == (3, sizes)
    assert result["interval"][0] <= result["bits_per_byte"] <= result["interval"][1]


# Intervals


def test_wilson_has_the_published_values():
    """The textbook's example, and exact ends at none and all."""
    assert intervals.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert intervals.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="successes: 0 of 0"):
        intervals.wilson(0, 0)


def test_bootstrap_resamples_pairs_together():
    """Two equal columns have a ratio of 1 in every resample; a mean has its normal interval."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)
    pairs = np.stack([values, values, np.ones(400)], 1)
    assert intervals.bootstrap(pairs, lambda sums: sums[..., 0] / sums[..., 1]) == (1.0, 1.0)
    low, high = intervals.bootstrap(pairs, lambda sums: sums[..., 0] / sums[..., 2])
    error = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)


# All of it


def test_result_file_has_every_figure(tiny_checkpoint: Path, tmp_path: Path):
    """One table row for each checkpoint, the rest of the model itself."""
    for name in ("held_out", "third_party"):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "package/a.py").write_text(SOURCE, encoding="utf-8")
    out = tmp_path / "result.json"
    demo_model.DemoModel(
        model=tiny_checkpoint,
        held_out=tmp_path / "held_out",
        third_party=tmp_path / "third_party",
        functions=2,
        lines=4,
        out=out,
    ).run()
    result = json.loads(out.read_text(encoding="utf-8"))
    assert list(result["bits_per_byte"]) == [tiny_checkpoint.name]
    assert set(result["bits_per_byte"][tiny_checkpoint.name]) == {"held_out", "third_party"}
    assert result["function_bodies"]["model"]["parses"]["of"] == 2
    assert result["infill"]["psm"]["of"] == 4


def test_checkpoints_of_one_name_are_refused(tiny_checkpoint: Path, tmp_path: Path):
    """One row of the table would silently replace the other."""
    with pytest.raises(ValueError, match="expected a different name for each row"):
        demo_model.DemoModel(
            model=tiny_checkpoint,
            earlier=(tmp_path / tiny_checkpoint.name,),
            held_out=tmp_path,
            third_party=tmp_path,
        ).run()


def test_folders_without_python_are_named(tmp_path: Path):
    """A wrong path is an error, not a measurement of nothing."""
    with pytest.raises(ValueError, match=r"no \.py file"):
        demo_model.read_texts(tmp_path)
    (tmp_path / "a.py").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.py: .* expected UTF-8"):
        demo_model.read_texts(tmp_path)
