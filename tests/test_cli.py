"""The ``jaxcoder`` command: its output byte by byte, its errors, and what it does to files."""

import errno
import io
import json
import os
import pty
import random
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxcoder import Completion, Generator, Timings, cli, durable, options, streams
from jaxcoder.cli import split_at
from jaxcoder.devices import announce
from jaxcoder.diagnostics import say

pytest_plugins = ["tiny_checkpoint"]

PROJECT = Path(__file__).resolve().parent.parent
SOURCE = "def add(a, b):\n    return \n\nprint(add(1, 2))  # 😀\n"
PREFIX, SUFFIX = SOURCE[:26], SOURCE[26:]
HOLE = "2:12"


class Result(NamedTuple):
    status: int
    out: bytes
    err: str


@pytest.fixture
def run(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Callable[..., Result]:
    """Run a command in this process, with the tiny model unless arguments name one."""

    def run(*arguments: str | Path, stdin: bytes | None = b"") -> Result:
        words = [str(argument) for argument in arguments]
        model = [] if "--model" in words else ["--model", str(tiny_checkpoint)]
        monkeypatch.setattr(sys, "argv", ["jaxcoder", *words[:1], *model, *words[1:]])
        given = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", given)
        capsysbinary.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as exc:
            status = exc.code
        shown = capsysbinary.readouterr()
        # Said once per process, by whichever test comes first.
        lines = shown.err.decode().splitlines(keepends=True)
        errors = [line for line in lines if not line.startswith("jaxcoder: cpu (")]
        return Result(status, shown.out, "".join(errors))

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with a hole at `HOLE`."""
    path = tmp_path / "source.py"
    path.write_bytes(SOURCE.encode())
    return path


def start(*arguments: str | Path, **options) -> subprocess.Popen[bytes]:
    """The command in a process of its own, in a locale that is not UTF-8 and buffered as usual."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "jaxcoder", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=PROJECT, env=env, **({"stderr": subprocess.PIPE} | options)
    )


# complete


SAMPLING = [
    *("--max-new-tokens", "40", "--temperature", "1.1", "--top-k", "40", "--top-p", "0.95"),
    *("--repetition-penalty", "1.2", "--seed", "3", "--stop", "never", "--stop", "x"),
]
SAMPLING_ARGUMENTS = {
    "max_new_tokens": 40,
    "temperature": 1.1,
    "top_k": 40,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "seed": 3,
    "stop": ["never", "x"],
}


def test_piped_output_is_the_text_byte_for_byte(
    generator: Generator, tiny_checkpoint: Path
) -> None:
    """UTF-8 in a locale that is not, no newline added, and everything else on standard error."""
    arguments = {"max_new_tokens": 40, "temperature": 1.0}
    texts = (generator.generate("def f():", seed=seed, **arguments).text for seed in range(100))
    seed, text = next((s, text) for s, text in enumerate(texts) if max(text) >= "😀")
    process = start(
        *("complete", "def f():", "--model", tiny_checkpoint),
        *("--max-new-tokens", "40", "--temperature", "1.0", "--seed", seed),
        stdout=subprocess.PIPE,
    )
    out, err = process.communicate()
    assert out == text.encode()
    assert err == b"jaxcoder: cpu (cpu), float32\n"
    assert process.returncode == 0


def test_prompt_from_standard_input(generator: Generator, tiny_checkpoint: Path) -> None:
    """Read as it is: \\r\\n stays, and so does a newline at the end."""
    prompt = "# 😀\r\ndef f():\n"
    process = start(
        *("complete", "--model", tiny_checkpoint, "--max-new-tokens", "20"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(prompt.encode())
    assert out == generator.generate(prompt, max_new_tokens=20).text.encode()


@pytest.mark.parametrize("prompt", ["def f():", "", "None", "-1", "a b\r\nc 😀"])
def test_prompt_as_argument_file_or_input_is_the_same(
    run: Callable[..., Result], generator: Generator, tmp_path: Path, prompt: str
) -> None:
    """ "None" is a prompt too: it was taken for no prompt, and standard input was waited for."""
    expected = generator.generate(prompt, max_new_tokens=12).text.encode()
    file = tmp_path / "prompt.txt"
    file.write_bytes(prompt.encode())
    for result in (
        run("complete", prompt, "--max-new-tokens", "12"),
        run("complete", "-f", file, "--max-new-tokens", "12"),
        run("complete", "--file", file, "--max-new-tokens", "12"),
        run("complete", "--max-new-tokens", "12", stdin=prompt.encode()),
    ):
        assert result == (0, expected, "")


def test_sampling_options_reach_the_model(run: Callable[..., Result], generator: Generator) -> None:
    """Also where an option stands before the prompt: --stop took the prompt as one more string."""
    expected = generator.generate("def f():", **SAMPLING_ARGUMENTS)
    assert run("complete", "def f():", *SAMPLING).out == expected.text.encode()
    assert run("complete", *SAMPLING, "def f():").out == expected.text.encode()
    assert expected.text != generator.generate("def f():", max_new_tokens=40).text


def test_json_holds_the_completion(run: Callable[..., Result], generator: Generator) -> None:
    expected = generator.generate("def f():", **SAMPLING_ARGUMENTS)
    result = run("complete", "def f():", "--json", *SAMPLING)
    assert result.out.endswith(b"}\n")
    fields = json.loads(result.out)
    assert set(fields.pop("timings")) == {"compile", "prefill", "decode"}
    assert fields == {
        "text": expected.text,
        "tokens": expected.tokens,
        "logprobs": pytest.approx(expected.logprobs, abs=1e-6),
        "finish_reason": expected.finish_reason,
        "trimmed": [0, 0],
    }


def test_several_completions_are_a_list(
    run: Callable[..., Result], generator: Generator, source: Path
) -> None:
    """Of as many objects as asked for, and one alone is an object."""
    options = ("--json", "--temperature", "1.0", "--max-new-tokens", "8")
    arguments = {"temperature": 1.0, "max_new_tokens": 8}
    expected = generator.generate("def f():", n=3, **arguments)
    shown = json.loads(run("complete", "def f():", "--n", "3", *options).out)
    assert [fields["tokens"] for fields in shown] == [each.tokens for each in expected]
    assert len({tuple(each.tokens) for each in expected}) == 3
    expected = generator.infill(PREFIX, SUFFIX, n=2, **arguments)
    shown = json.loads(run("infill", source, "--at", HOLE, "--n", "2", *options).out)
    assert [fields["tokens"] for fields in shown] == [each.tokens for each in expected]
    assert isinstance(json.loads(run("complete", "x", "--n", "1", *options).out), dict)


def test_special_tokens_are_read_on_request(
    run: Callable[..., Result], generator: Generator
) -> None:
    prompt = "<fim_prefix>a<fim_suffix>b<fim_middle>"
    expected = generator.generate(prompt, special=True, max_new_tokens=12).text
    result = run("complete", prompt, "--special", "--max-new-tokens", "12")
    assert result == (0, expected.encode(), "")


def test_dtype_reaches_the_model(run: Callable[..., Result]) -> None:
    assert b"bfloat16" in run("info", "--dtype", "bfloat16").out
    assert b"float32" in run("info").out


# How it is shown


def test_each_piece_is_shown_before_the_next_is_made(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    shown = []

    def pieces() -> Iterator[str]:
        for piece in ("a", "😀", "\n"):
            yield piece
            shown.append(capsysbinary.readouterr().out)

    streams.write_pieces(pieces())
    assert shown == [b"a", "😀".encode(), b"\n"]


@pytest.mark.parametrize("text", ["", "a", "a\n"])
def test_only_a_terminal_gets_a_closing_newline(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    streams.write_pieces(iter([text, ""]))
    assert capsysbinary.readouterr().out == text.encode()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    streams.write_pieces(iter([text, ""]))
    assert capsysbinary.readouterr().out == text.removesuffix("\n").encode() + b"\n"


def test_terminal_shows_the_text(generator: Generator, tiny_checkpoint: Path) -> None:
    """On a real pseudo-terminal; a shell prompt does not stand behind the text."""
    reader, terminal = pty.openpty()
    process = start(
        *("complete", "def f():", "--model", tiny_checkpoint, "--max-new-tokens", "20"),
        stdout=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(reader, 1 << 16):
            shown += piece
    except OSError as exc:  # Linux says so when the last writer has closed
        assert exc.errno == errno.EIO
    finally:
        os.close(reader)
        process.communicate()
    text = generator.generate("def f():", max_new_tokens=20).text.removesuffix("\n") + "\n"
    assert shown == text.replace("\n", "\r\n").encode()


def test_reader_that_goes_away_is_no_error_message(tiny_checkpoint: Path) -> None:
    """`| head` closes the pipe; Python complained at exit, in words and a status of its own."""
    process = start("info", "--model", tiny_checkpoint, stdout=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert err == b"jaxcoder: cpu (cpu), float32\n"
    assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(tiny_checkpoint: Path) -> None:
    """It was a traceback."""
    with open("/dev/full", "wb") as full:
        process = start("info", "--model", tiny_checkpoint, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.splitlines()[1:] == [
        b"jaxcoder: standard output: cannot be written (No space left on device)"
    ]


def test_closed_standard_error_leaves_the_output_alone(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, generator: Generator
) -> None:
    """`2>&-`: Python has no sys.stderr then, and what was said came out among the text."""
    ids = generator.tokenizer.encode("<fim_prefix>")
    expected = generator.generate(ids, max_new_tokens=4).text.encode()
    monkeypatch.setattr(sys, "stderr", None)
    announce.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("complete", "<fim_prefix>", "--max-new-tokens", "4").out == expected
    assert run("info", "--model", "./none") == (2, b"", "")


def test_closed_standard_error_of_a_process() -> None:
    """Also what libraries say: usage errors are tyro's."""
    command = f"exec {sys.executable} -m jaxcoder complete --top-k many 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=PROJECT, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_closed_output_is_one_line(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """`>&-`: it was a traceback."""
    monkeypatch.setattr(sys, "stdout", None)
    result = run("complete", "x", "--max-new-tokens", "0", *options)
    assert result.status == 2
    assert result.err.startswith("jaxcoder: standard output is closed")
    assert len(result.err.splitlines()) == 1


def test_full_standard_error_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(sys, "stderr", Full())
    say("lost")


def test_interrupt_while_importing_is_status_130(tmp_path: Path) -> None:
    """It was thirty lines of traceback."""
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "jaxcoder", "info"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_platform_that_cannot_start_is_one_line(tiny_checkpoint: Path) -> None:
    """It was a traceback that ended in an empty AssertionError."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxcoder", "info", "--model", tiny_checkpoint],
        cwd=PROJECT,
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(b"jaxcoder: JAX_PLATFORMS is 'none_such', which JAX cannot start")


def test_interrupt_is_status_130(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: cli.Complete) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Complete, "run", interrupt)
    assert run("complete", "x") == (130, b"", "")


def test_warning_is_one_line(run: Callable[..., Result]) -> None:
    """It came with a file name and a line of our source."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = run("complete", "<fim_prefix>", "--max-new-tokens", "1")
    assert result.status == 0
    assert result.err.startswith("jaxcoder: the prompt spells '<fim_prefix>'")
    assert len(result.err.splitlines()) == 1


# infill


@pytest.mark.parametrize("mode", ["psm", "spm"])
def test_infill_prints_the_middle_or_the_whole_file(
    run: Callable[..., Result], generator: Generator, source: Path, mode: str
) -> None:
    middle = generator.infill(PREFIX, SUFFIX, mode=mode, max_new_tokens=20).text
    options = ("--at", HOLE, "--mode", mode, "--max-new-tokens", "20")
    assert run("infill", source, *options) == (0, middle.encode(), "")
    whole = PREFIX + middle + SUFFIX
    assert run("infill", source, *options, "--full") == (0, whole.encode(), "")
    assert source.read_bytes() == SOURCE.encode()


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_piped_infill_is_the_text_byte_for_byte(
    generator: Generator, tiny_checkpoint: Path, source: Path, options: list[str]
) -> None:
    """No newline added or changed, in a locale that is not UTF-8."""
    text = SOURCE.replace("\n", "\r\n")
    prefix, suffix = split_at(text, HOLE)
    source.write_bytes(text.encode())
    middle = generator.infill(prefix, suffix, max_new_tokens=20, temperature=1.0, seed=2).text
    process = start(
        *("infill", source, "--at", HOLE, "--model", tiny_checkpoint, *options),
        *("--max-new-tokens", "20", "--temperature", "1.0", "--seed", "2"),
        stdout=subprocess.PIPE,
    )
    out, err = process.communicate()
    assert out == (prefix + middle + suffix if options else middle).encode()
    assert err == b"jaxcoder: cpu (cpu), float32\n"
    assert process.returncode == 0


def test_infill_between_two_files(
    run: Callable[..., Result], generator: Generator, tmp_path: Path
) -> None:
    """Either of them may be left out, and is empty then."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_bytes(PREFIX.encode())
    after.write_bytes(SUFFIX.encode())
    for prefix, suffix, words in (
        (PREFIX, SUFFIX, ["--prefix-file", before, "--suffix-file", after]),
        (PREFIX, "", ["--prefix-file", before]),
        ("", SUFFIX, ["--suffix-file", after]),
    ):
        middle = generator.infill(prefix, suffix, max_new_tokens=8).text
        result = run("infill", *words, "--max-new-tokens", "8")
        assert result == (0, middle.encode(), "")


def test_infill_json_has_the_middle_and_what_was_trimmed(
    run: Callable[..., Result], generator: Generator, source: Path
) -> None:
    source.write_text("x = 1\n" * 200)
    expected = generator.infill("x = 1\n" * 100, "x = 1\n" * 100, max_new_tokens=8)
    fields = json.loads(run("infill", source, "--at", "101:1", "--json", *SAMPLING[:1], "8").out)
    assert fields["text"] == expected.text
    assert tuple(fields["trimmed"]) == expected.trimmed
    assert min(expected.trimmed) > 0


def test_trimming_is_said_on_standard_error(run: Callable[..., Result], source: Path) -> None:
    source.write_text("x = 1\n" * 200)
    for how in ([], ["--full"], ["--in-place"]):
        result = run("infill", source, "--at", "101:1", "--max-new-tokens", "8", *how)
        assert result.status == 0
        assert "tokens before and" in result.err
        assert "were left out" in result.err


def test_in_place_changes_the_hole_and_nothing_else(
    run: Callable[..., Result], generator: Generator, source: Path, tmp_path: Path
) -> None:
    """Line ends, mode and a link to the file are kept, and nothing is printed."""
    text = SOURCE.replace("\n", "\r\n")
    prefix, suffix = split_at(text, HOLE)
    source.write_bytes(text.encode())
    source.chmod(0o640)
    link = tmp_path / "link.py"
    link.symlink_to(source)
    middle = generator.infill(prefix, suffix, max_new_tokens=20).text
    result = run("infill", link, "--at", HOLE, "--in-place", "--max-new-tokens", "20")
    assert result == (0, b"", "")
    assert source.read_bytes() == (prefix + middle + suffix).encode()
    assert stat.S_IMODE(source.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.py", "source.py"]


@pytest.mark.parametrize("failing", ["fsync", "chmod", "rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_in_place_that_fails_leaves_the_file_as_it_was(
    run: Callable[..., Result],
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    error: BaseException,
) -> None:
    """An interruption left a second file behind."""

    def fail(*_: object, **__: object) -> None:
        raise error

    owner, name = {"fsync": (os, "fsync"), "chmod": (os, "chmod"), "rename": (Path, "replace")}[
        failing
    ]
    monkeypatch.setattr(owner, name, fail)
    result = run("infill", source, "--at", HOLE, "--in-place", "--max-new-tokens", "4")
    monkeypatch.undo()
    if isinstance(error, OSError):
        message = f"jaxcoder: {source}: cannot be written (no space); it is as it was\n"
        assert result == (2, b"", message)
    else:
        assert result.status == 130
    assert source.read_bytes() == SOURCE.encode()
    assert list(source.parent.iterdir()) == [source]


def test_in_place_whose_folder_cannot_be_synced_says_that_it_was_written(
    run: Callable[..., Result],
    generator: Generator,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message said that the file was as it had been."""

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "input/output error")

    middle = generator.infill(PREFIX, SUFFIX, max_new_tokens=4).text
    monkeypatch.setattr(durable, "sync_to_disk", fail)
    result = run("infill", source, "--at", HOLE, "--in-place", "--max-new-tokens", "4")
    assert result.status == 2
    assert result.err == (
        f"jaxcoder: {source}: written, but not certain to survive a loss of power "
        "(input/output error); check the disk\n"
    )
    assert source.read_bytes() == (PREFIX + middle + SUFFIX).encode()
    assert list(source.parent.iterdir()) == [source]


def test_in_place_never_opens_a_private_file_to_others(
    run: Callable[..., Result], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new content could be read by all until the mode was copied."""
    modes = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    source.chmod(0o600)
    monkeypatch.setattr(os, "fsync", fsync)
    assert run("infill", source, "--at", HOLE, "--in-place", "--max-new-tokens", "4").status == 0
    assert modes[0] == 0o600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_in_place_in_a_read_only_folder(run: Callable[..., Result], source: Path) -> None:
    source.parent.chmod(0o500)
    try:
        result = run("infill", source, "--at", HOLE, "--in-place", "--max-new-tokens", "4")
    finally:
        source.parent.chmod(0o700)
    assert result.status == 2
    assert "it is as it was" in result.err
    assert source.read_bytes() == SOURCE.encode()


# --at


def test_every_place_of_a_text_splits_there() -> None:
    """Lines and columns count from 1, columns in characters; one past the end is allowed."""
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choices("ab é😀\n\r\t", k=rng.randrange(0, 30)))
        for offset in range(len(text) + 1):
            line = text.count("\n", 0, offset) + 1
            column = offset - (text.rfind("\n", 0, offset) + 1) + 1
            assert split_at(text, f"{line}:{column}") == (text[:offset], text[offset:])


@pytest.mark.parametrize(
    ("text", "at", "prefix"),
    [
        ("one\ntwo\n", "1:1", ""),
        ("one\ntwo\n", "2:1", "one\n"),
        ("one\ntwo\n", "2:4", "one\ntwo"),
        ("one\ntwo\n", "3:1", "one\ntwo\n"),
        ("one\ntwo", "02:01", "one\n"),
        ("", "1:1", ""),
    ],
)
def test_place(text: str, at: str, prefix: str) -> None:
    assert split_at(text, at) == (prefix, text[len(prefix) :])


@pytest.mark.parametrize(
    ("at", "message"),
    [
        *((at, "expected LINE:COL such as 12:1") for at in ("", "2", "2:", ":1", "a:b", "1:1:1")),
        *((at, "expected LINE:COL such as 12:1") for at in ("-1:1", "1.0:1", "+1:1", " 1:1")),
        ("0:1", "but the file has lines 1 to 3"),
        ("4:1", "but the file has lines 1 to 3"),
        ("1:0", "but line 1 has columns 1 to 4"),
        ("1:5", "but line 1 has columns 1 to 4"),
        ("3:2", "but line 3 has columns 1 to 1"),
    ],
)
def test_no_such_place(at: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        split_at("one\ntwo\n", at)
    assert repr(at) in str(caught.value)


# info


def test_info_counts_what_was_loaded(run: Callable[..., Result], generator: Generator) -> None:
    fields = json.loads(run("info", "--json").out)
    config = generator.config
    assert fields["n_positions"] == config.n_positions == fields["context"]
    assert fields["parameters"] == 40_608
    assert fields["parameter_bytes"] == 4 * 40_608
    assert fields["cache_bytes"] == config.n_layer * 256 * 2 * config.head_dim * 4
    assert fields["dtype"] == "float32"
    half = json.loads(run("info", "--json", "--dtype", "bfloat16").out)
    assert half["parameter_bytes"] == 2 * 40_608
    lines = run("info", "--context", "10").out.decode().splitlines()
    assert len(lines) == len(fields)
    assert lines[0].split() == ["model_type", "gpt_bigcode"]
    assert "parameters           40,608" in lines


# Errors


# (case, arguments, a part of the one line)
REFUSED = [
    ("two prompts", ["complete", "x", "-f", "{file}"], "both a prompt and --file were given"),
    ("no such file", ["complete", "-f", "{folder}/none"], "none: cannot be read (No such file"),
    ("a folder", ["complete", "-f", "{folder}"], "cannot be read (Is a directory)"),
    ("not UTF-8", ["complete", "-f", "{binary}"], "binary: byte 1 is not UTF-8"),
    ("input not UTF-8", ["complete"], "standard input: byte 2 is not UTF-8"),
    ("no model", ["complete", "x", "--model", "{folder}/none"], "none: no such folder"),
    ("an empty folder", ["info", "--model", "{empty}"], "config.json"),
    ("temperature", ["complete", "x", "--temperature", "nan"], "temperature is nan"),
    ("too long", ["complete", "x", "--max-new-tokens", "999"], "999 new tokens exceed"),
    ("context", ["info", "--context", "257"], "context is 257, expected 1 to 256"),
    ("several texts", ["complete", "x", "--n", "2"], "n is 2, and several completions need --json"),
    ("no texts", ["complete", "x", "--n", "0"], "n is 0, expected an integer of at least 1"),
    ("greedy texts", ["complete", "x", "--n", "2", "--json"], "n is 2 with temperature 0"),
    (
        "several in place",
        ["infill", "{file}", "--at", "1:1", "--n", "2", "--in-place"],
        "several completions need --json",
    ),
    ("no hole", ["infill"], "give FILE with --at, or --prefix-file and --suffix-file"),
    ("no place", ["infill", "{file}"], "--at is missing: the place of the hole in FILE"),
    ("bad place", ["infill", "{file}", "--at", "99:1"], "the file has lines 1 to 5"),
    (
        "file and sides",
        ["infill", "{file}", "--at", "1:1", "--prefix-file", "{file}"],
        "give FILE with --at, or",
    ),
    ("place of sides", ["infill", "--at", "1:1", "--prefix-file", "{file}"], "--at goes with FILE"),
    ("in no place", ["infill", "--prefix-file", "{file}", "--in-place"], "--in-place needs FILE"),
    (
        "in place and JSON",
        ["infill", "{file}", "--at", "1:1", "--in-place", "--json"],
        "goes with neither",
    ),
    (
        "in place and full",
        ["infill", "{file}", "--at", "1:1", "--in-place", "--full"],
        "goes with neither",
    ),
    (
        "full and JSON",
        ["infill", "{file}", "--at", "1:1", "--json", "--full"],
        "both --json and --full",
    ),
    ("no room", ["infill", "{file}", "--at", "1:1", "--max-new-tokens", "254"], "3 sentinels"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED]
)
def test_mistake_is_one_line_and_status_2(
    run: Callable[..., Result], source: Path, arguments: list[str], message: str
) -> None:
    """Nothing on standard output, and no file changed."""
    folder = source.parent
    (folder / "empty").mkdir()
    (folder / "binary").write_bytes(b"a\xffb")
    places = {
        "file": source,
        "folder": folder,
        "binary": folder / "binary",
        "empty": folder / "empty",
    }
    before = sorted(folder.rglob("*"))
    result = run(*(word.format_map(places) for word in arguments), stdin=b"ab\xff")
    assert result.status == 2
    assert result.out == b""
    assert result.err.startswith("jaxcoder: ")
    assert len(result.err.splitlines()) == 1, result.err
    assert message in result.err
    assert source.read_bytes() == SOURCE.encode()
    assert sorted(folder.rglob("*")) == before


def test_closed_input_is_one_line(run: Callable[..., Result]) -> None:
    """It was a traceback; Python has no sys.stdin then."""
    assert run("complete", stdin=None) == (
        2,
        b"",
        "jaxcoder: standard input is closed; give a prompt or --file\n",
    )


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["complete", "x", "y"], ["complete", "--top-k", "many"]]
)
def test_usage_error_is_status_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxcoder", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_bad_model_in_a_process_of_its_own() -> None:
    """The whole of standard error is one line: no library adds words to it."""
    process = start("info", "--model", "./no/such/folder", stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == b""
    assert len(err.splitlines()) == 1, err
    assert err.startswith(b"jaxcoder: no/such/folder: no such folder")


def test_no_model_is_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxcoder", "complete", "import os", "--max-new-tokens", "8"])
    cli.main()
    expected = Generator.from_pretrained().generate("import os", max_new_tokens=8).text
    assert expected
    assert capsys.readouterr().out == expected


def test_values_out_of_range_are_refused_before_a_model_is_loaded(
    run: Callable[..., Result],
) -> None:
    """The Hub was asked, and hundreds of megabytes fetched, before a bad --top-p was named."""
    for option, value in (("top-p", "5"), ("temperature", "-1"), ("seed", "-1"), ("stop", "")):
        result = run("complete", "x", f"--{option}", value, "--model", "bigcode/none")
        assert result.status == 2
        assert option.replace("-", "_") in result.err


def test_in_place_does_not_overwrite_what_was_edited_meanwhile(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited.py"
    file.write_text("a = 1\n")

    class Editing:
        def infill(self, *_: object, **__: object) -> Completion:
            file.write_text("a = 2\n")
            return Completion("x", [], [], "eos", Timings(0, 0, 0))

    monkeypatch.setattr(options.ModelOptions, "load", lambda self: Editing())
    result = run("infill", str(file), "--at", "1:1", "--in-place")
    assert result.status == 2
    assert "was changed while" in result.err
    assert file.read_text() == "a = 2\n"
