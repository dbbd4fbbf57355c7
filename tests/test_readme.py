"""What README.md says can be done, can be done: its code runs, its commands parse, its files exist.

The tiny checkpoint stands in for the published weights.
"""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

import conversion.__main__
import train.cli
from jaxcoder import ModelConfig, cli
from jaxcoder.fim import psm_prompt
from jaxcoder.hf_names import tensor_shapes
from jaxcoder.tokenizer import Tokenizer
from train.config_checks import check_config
from train.presets import PRESETS
from train.start_checks import check_start

pytest_plugins = ["tiny_checkpoint"]

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
TRAINING = (PROJECT / "docs" / "training.md").read_text(encoding="utf-8")
PUBLISHED = "bigcode/tiny_starcoder_py"
LISTED_WHOLE = ("jaxcoder", "conversion")
"""Folders whose every file the tree names."""


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language; "" is a block of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [source for name, source in found if name == language]


def commands(text: str = README) -> list[list[str]]:
    """The words of every shell command, as the shell would split them; of a pipe its last part."""
    lines = "".join(blocks("sh", text)).splitlines()
    return [shlex.split(line.rpartition(" | ")[2], comments=True) for line in lines if line]


def run_block(source: str, model: Path) -> dict[str, object]:
    """Run a Python block with a model of our own; returns its variables."""
    names: dict[str, object] = {}
    exec(compile(source.replace(PUBLISHED, str(model)), "README.md", "exec"), names)
    return names


# The first screen


def test_first_screen_runs_something() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    for command in ("git clone", "make demo", "jaxcoder complete"):
        assert command in first_screen


def test_nothing_is_installed_by_a_name_on_an_index() -> None:
    """The name there may be anybody's: only this folder is installed."""
    installed = [words[2:] for words in commands() if words[:2] == ["pip", "install"]]
    installed += [shlex.split(name) for name in re.findall(r"`pip install ([^`]*)`", README)]
    assert installed
    for (target,) in installed:
        assert target == "." or target.startswith(".[")


def test_number_of_parameters_is_that_of_the_published_shape() -> None:
    shapes = tensor_shapes(ModelConfig.tiny_starcoder()).values()
    count = sum(math.prod(shape) for shape in shapes)
    assert f"({count:,} parameters, {round(4 * count / 1e6)} MB, float32)" in README


# Python


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_runs(tiny_checkpoint: Path, number: int) -> None:
    run_block(blocks("python")[number], tiny_checkpoint)


def test_python_is_ten_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line]) == 10


def test_fill_in_the_middle_snippet_is_infill(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentinels in the text, read with special=True, give what .infill gives."""
    generation, infilling = blocks("python")[1:]
    assert 'encode("def print_hello_world():")' in generation
    names = run_block(infilling, tiny_checkpoint)
    model = names["model"]
    prefix, suffix = "def print_one_two_three():\n    print('one')\n    ", "\n    print('three')"
    assert names["input_text"] == f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    asked = model.infill_prompt(prefix, suffix)
    assert names["inputs"] == asked.tokens
    assert asked.trimmed == (0, 0)
    assert names["outputs"].tokens == names["same"].tokens == model.generate(asked.tokens).tokens
    with_text = model.generate(names["input_text"], special=True)
    assert with_text.tokens == names["outputs"].tokens
    assert capsys.readouterr().out.startswith("<fim_prefix>def print_one_two_three():")


def test_fill_in_the_middle_snippet_with_the_published_tokenizer(shared_data: Path) -> None:
    """There, too, the ids are those of the pieces: no merge reaches across a sentinel."""
    tokenizer = Tokenizer.from_file(shared_data / "starcoder-tokenizer" / "tokenizer.json")
    prefix, suffix = "def print_one_two_three():\n    print('one')\n    ", "\n    print('three')"
    text = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    pieces = psm_prompt(tokenizer.encode(prefix), tokenizer.encode(suffix), tokenizer.fim)
    assert tokenizer.encode(text, special=True) == pieces
    assert tokenizer.encode("def print_hello_world():") == [589, 1459, 81, 7656, 81, 5860, 2262]


@pytest.mark.parity
def test_snippets_print_what_they_print_in_pytorch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The model card's own lines, run by transformers on an export of the same weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from conversion.export import export

    export(tiny_checkpoint, tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for block in blocks("python")[1:]:
        ours = run_block(block, tiny_checkpoint)
        text = ours.get("input_text", "def print_hello_world():")
        inputs = tokenizer.encode(text, return_tensors="pt")
        outputs = model.generate(inputs, max_new_tokens=128, do_sample=False)
        tokens = ours["inputs"] + ours["outputs"].tokens
        assert outputs[0].tolist() == tokens
        assert tokenizer.decode(outputs[0]) == ours["tokenizer"].decode(tokens, skip_special=False)


# Commands


def test_commands_are_found() -> None:
    """Negative control: the parsing below sees them all, comments and pipes taken off."""
    starts = {tuple(words[:2]) for words in commands()}
    assert {("make", "demo"), ("jaxcoder", "infill"), ("jaxcoder", "info")} <= starts
    assert ["--stop", "class "] in [words[-3:-1] for words in commands()]
    assert not any("#" in words for words in commands())


@pytest.fixture
def workplace(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The current folder is one with the files that the commands name, or make themselves."""
    (tmp_path / "checkpoint").symlink_to(tiny_checkpoint)
    for name in ("example.py", "prompt.py", "before.py", "after.py"):
        (tmp_path / name).write_text("def add(a, b):\n    return a + b\n")
    for line in "".join(blocks("sh")).splitlines():
        if line.startswith("printf "):
            subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "prompt.py").open())
    yield
    sys.stdin.close()


def test_an_example_of_infilling_makes_its_own_file(workplace: None) -> None:
    """It took a file and a checkpoint that a reader does not have; the hole is where --at says."""
    (words,) = [words for words in commands() if words[:3] == ["jaxcoder", "infill", "hole.py"]]
    assert "--model" not in words
    text = Path("hole.py").read_text()
    prefix, suffix = cli.split_at(text, words[words.index("--at") + 1])
    assert prefix == "def add(a, b):\n    return " and suffix.startswith("\n\nprint(add(")


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[0] == "jaxcoder"], ids=shlex.join
)
def test_jaxcoder_command_runs(
    workplace: None,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    words = [word.replace(PUBLISHED, "./checkpoint") for word in words]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    out = capsysbinary.readouterr().out
    assert bool(out) == ("--in-place" not in words)
    if "--json" in words:
        assert json.loads(out)


MODULE_COMMANDS = [
    words for words in (*commands(), *commands(TRAINING)) if words[:2] == ["python", "-m"]
]


@pytest.mark.parametrize("words", MODULE_COMMANDS, ids=shlex.join)
def test_module_command_parses(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The command line accepts it; what it does has tests of its own."""
    parsed = []
    real = tyro.cli

    def parse_only(*arguments, **options):
        parsed.append(real(*arguments, **options))
        raise SystemExit(0)

    monkeypatch.setattr(tyro, "cli", parse_only)
    monkeypatch.setattr(sys, "argv", words[2:])
    main = {"conversion": conversion.__main__.main, "train": train.cli.main}[words[2]]
    with pytest.raises(SystemExit):
        main()
    if words[2] == "train" and words[3] in PRESETS:
        command, unknown = parsed[0]
        assert not unknown
        check_config(command.config)
    else:
        assert type(parsed[0]).__name__.lower().removesuffix("command") == words[3]


def test_first_run_of_the_guide_starts_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, model and data fit each other; a newcomer needed three attempts.

    Control: without one of its settings they do not.
    """
    (words,) = [words for words in MODULE_COMMANDS if "jaxcoder/demo" in words]
    monkeypatch.chdir(PROJECT)
    for left_out in ("", "--batch.seq-len", "--optimizer.warmup-steps"):
        given = list(words[4:])
        if left_out:
            del given[given.index(left_out) : given.index(left_out) + 2]
        command = tyro.cli(
            train.cli.TrainCommand,
            args=[*given, "--out", str(tmp_path / "run")],
            default=train.cli.TrainCommand(PRESETS[words[3]]()),
        )
        if left_out:
            with pytest.raises(ValueError, match=r"batch\.seq_len|optimizer\.warmup_steps"):
                check_start(command.config)
        else:
            assert check_start(command.config).folder == Path("jaxcoder/demo")


def test_make_targets_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = [words[1] for words in commands() if words[0] == "make"]
    named += re.findall(r"`make ([\w-]+)", README)
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# Files


def tree() -> list[str]:
    """The paths that the file tree names."""
    (text,) = [block for block in blocks("") if "generator.py" in block]
    paths, folder = [], ""
    for line in text.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ""
        paths.append(folder + name)
        if name.endswith("/"):
            folder = name
        paths += [folder + other for other in re.findall(r"\b\w+\.py\b", line[27:])]
    return paths


def test_files_of_the_tree_exist() -> None:
    paths = tree()
    assert len(paths) > 40
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert (PROJECT / path).exists(), path
        assert (PROJECT / path).is_dir() == path.endswith("/")


@pytest.mark.parametrize("folder", LISTED_WHOLE)
def test_tree_has_every_file(folder: str) -> None:
    """A file that the tree lacks is not found by a reader: add a line with what it does."""
    files = {f"{folder}/{path.name}" for path in (PROJECT / folder).glob("*.py")}
    assert files - {f"{folder}/__init__.py"} <= set(tree())


DOCUMENTS = [
    path.relative_to(PROJECT).as_posix()
    for path in (
        PROJECT / "README.md",
        PROJECT / "benchmarks" / "README.md",
        *sorted((PROJECT / "docs").rglob("*.md")),
    )
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_local_files_exist(document: str) -> None:
    """Links are relative to the document, paths in backticks to the project."""
    path = PROJECT / document
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:md|json|py))`", text):
        assert (PROJECT / name).exists(), name


def test_documents_and_the_licence_are_named() -> None:
    """Negative control of the test above: README has links, and docs are found."""
    assert "](docs/decisions/README.md)" in README
    assert len(DOCUMENTS) > 5
    assert "LICENSE" in README
    assert (PROJECT / "LICENSE").exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_is_still_to_be_filled_in(document: str) -> None:
    text = (PROJECT / document).read_text(encoding="utf-8")
    assert not re.findall(r"@[A-Z0-9]+@", text)


# Figures

# A row of the table -> the file in benchmarks/results that its figures are from.
MEASURED = {
    "decode, float32, 1 prompt, tokens/s": "decode-float32-batch1",
    "decode, float32, 8 prompts, tokens/s": "decode-float32-batch8",
    "decode, bfloat16, 1 prompt, tokens/s": "decode-bfloat16-batch1",
    "prefill, float32, 1,024 tokens, tokens/s": "prefill-float32-1024",
    "prefill, bfloat16, 1,024 tokens, tokens/s": "prefill-bfloat16-1024",
    "training step, float32, 1 x 2,048, tokens/s": "train-step-float32-1x2048",
    "training step, bfloat16, 1 x 2,048, tokens/s": "train-step-bfloat16-1x2048",
    "its peak memory, float32, GB": "train-step-float32-1x2048",
    "its peak memory, bfloat16, GB": "train-step-bfloat16-1x2048",
}


def measured() -> str:
    (text,) = re.findall(r"^<!-- measured -->$(.*)^<!-- /measured -->$", README, re.M | re.S)
    return text


def measured_rows() -> dict[str, list[str]]:
    """The table's first column -> the other columns."""
    lines = [line for line in measured().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells if first}


def result(name: str) -> dict:
    path = PROJECT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def as_shown(value: float, shown: str) -> str:
    """`value` with as many decimals as `shown` has."""
    return f"{value:,.{len(shown.partition('.')[2])}f}"


def test_measured_table_has_its_rows() -> None:
    assert list(measured_rows()) == list(MEASURED)


@pytest.mark.parametrize("row", MEASURED)
def test_measured_figures_are_those_of_the_result(row: str) -> None:
    """Rounded as they are shown; the machine and the versions are the result's, too."""
    content = result(MEASURED[row])
    if "memory" in row:
        ours, theirs = (content["peak_bytes"][side] for side in ("jaxcoder", "transformers"))
        figures = [ours / 1e9, theirs / 1e9, ours / theirs]
    else:
        ratio = content["ratios"]["jaxcoder / transformers"]
        figures = [
            part["tokens_per_second"]["median"]
            for part in (content["jaxcoder"], content["transformers"], ratio)
        ]
    shown = measured_rows()[row]
    assert [as_shown(figure, text) for figure, text in zip(figures, shown, strict=True)] == shown
    environment = content["environment"]
    assert environment["date"] in measured()
    assert f"jax {environment['versions']['jax']}," in measured()


def test_a_wrong_figure_would_be_seen() -> None:
    """Negative control: the last digit shown counts."""
    assert as_shown(1041.46, "1,042") == "1,041"
    assert as_shown(0.8069, "0.81") == "0.81"
    assert as_shown(0.8069, "0.80") != "0.80"
