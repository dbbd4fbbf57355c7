"""The loss of each token: the model's own, however long the text, and what is shown of it."""

import html
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcoder import Generator, cli, inspect, reference
from jaxcoder.hf_names import params_to_hf
from jaxcoder.inspect import TokenLosses, to_html, to_terminal, token_losses
from jaxcoder.loss_views import to_json, to_table
from train.loss import chunked_cross_entropy

pytest_plugins = ["tiny_checkpoint"]

CODE = 'def add(a, b):\n    """Sum <b>é</b> & 😀."""\n    return a + b\n'
# Nats of a token; float32 losses of order 5.
TOLERANCE = 1e-4


def exact_losses(generator: Generator, ids: list[int]) -> np.ndarray:
    """The float64 reference's losses [T - 1] of the second to the last token."""
    params = {name: np.asarray(leaf) for name, leaf in leaves(generator.params)}
    tensors = params_to_hf(nested(params), generator.config)
    logits = reference.forward(tensors, generator.config, np.array(ids)).logits
    return -reference.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]


def leaves(tree: dict, path: tuple[str, ...] = ()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def nested(flat: dict[tuple[str, ...], np.ndarray]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return tree


# The losses


def test_losses_are_the_references(generator: Generator) -> None:
    got = token_losses(generator, CODE)
    assert got.tokens == generator.tokenizer.encode(CODE)
    assert np.isnan(got.losses[0])
    assert np.abs(got.losses[1:] - exact_losses(generator, got.tokens)).max() <= TOLERANCE


def test_losses_sum_to_the_training_loss(generator: Generator) -> None:
    """What training adds up for the same tokens, by code of its own."""
    got = token_losses(generator, CODE)
    ids = np.array(got.tokens)
    features, _ = generator.model.apply(
        {"params": generator.params}, ids[None, :-1], method="features"
    )
    total = chunked_cross_entropy(
        features[0],
        generator.params["lm_head"]["weight"],
        targets=ids[1:],
        weights=np.ones(len(ids) - 1, np.float32),
        chunk=16,
        dtype=np.float32,
    )
    assert got.total == pytest.approx(float(total), rel=1e-5)
    assert got.total == pytest.approx(float(np.nansum(got.losses)), rel=1e-5)
    size = len(CODE.encode()) - len(got.texts[0].encode())
    assert got.bits_per_byte == pytest.approx(got.total / math.log(2) / size)


def test_a_long_text_is_read_in_windows(generator: Generator) -> None:
    """Each token but the first is counted once, with half a window before it at least."""
    text = (CODE * 20)[:800]
    got = token_losses(generator, text)
    window = generator.config.n_positions
    assert len(got.tokens) > 2.5 * window
    assert np.isnan(got.losses[0]) and not np.isnan(got.losses[1:]).any()
    half = window // 2
    for start in range(0, len(got.tokens) - half, half):
        exact = exact_losses(generator, got.tokens[start : start + window])
        counted = got.losses[start + 1 :][: len(exact)]
        known = half - 1 if start else 0
        assert np.abs(counted[known:] - exact[known:])[: window - 1 - known].max() <= TOLERANCE
        if start:  # control: with less before it a token's loss is another
            assert np.abs(counted[:known] - exact[:known]).max() > 0.01


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 384, 385])
def test_every_length_around_a_window(generator: Generator, length: int) -> None:
    got = token_losses(generator, "1" * length)
    assert len(got.tokens) == length == len(got.losses)
    assert np.isnan(got.losses[0]) and np.isfinite(got.losses[1:]).all()


def test_texts_are_the_text(generator: Generator) -> None:
    """A token that ends amid a character has none; the one that ends it has all of it."""
    got = token_losses(generator, CODE)
    assert "".join(got.texts) == CODE
    emoji = got.texts.index("😀")
    assert got.texts[emoji - 1] == ""


def test_bits_per_byte_is_over_all_bytes_after_the_first_token(generator: Generator) -> None:
    """One that ended amid a character, as in 'é', had its bytes counted with the next token's."""
    got = token_losses(generator, "😀 = 1\n")
    assert got.texts[:2] == ["", "😀"]
    assert generator.tokenizer.token_bytes(got.tokens[0]) == "😀".encode()[:3]
    assert got.predicted_bytes == 1 + len(" = 1\n")
    assert got.bits_per_byte == got.total / math.log(2) / got.predicted_bytes


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), (b"x", "is bytes")])
def test_what_has_no_loss_is_refused(generator: Generator, text: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"text {message}, expected a str"):
        token_losses(generator, text)


# What is shown

LOSSES = TokenLosses(
    [1, 2, 3, 4, 5],
    ["a", "<&", "", "😀\n", "\x1b[2J"],
    np.array([np.nan, 4.0, 1.0, 1.0, 80.0], np.float32),
    11,
)
COLOUR = re.compile(r"\x1b\[38;2;17;17;17;48;2;(\d+);(\d+);(\d+)m|\x1b\[0m")


def losses_of(*texts: str) -> TokenLosses:
    """A token a text, each with a loss of 1 but the first."""
    losses = np.array([np.nan] + [1.0] * (len(texts) - 1), np.float32)
    return TokenLosses(list(range(len(texts))), [*texts], losses, len("".join(texts[1:]).encode()))


def test_html_shows_all_of_the_text(generator: Generator) -> None:
    got = token_losses(generator, CODE)
    (shown,) = re.findall(r"<pre[^>]*>(.*)</pre>", to_html(got), re.DOTALL)
    assert html.unescape(re.sub(r"</?span[^>]*>", "", shown)) == CODE


def test_html_is_coloured_by_loss() -> None:
    """White, half way to red, and red from 8 nats on; half characters count with their end."""
    spans = re.findall(r'background: (#\w+)" title="([^:]*):', to_html(LOSSES))
    assert spans == [
        ("#ffffff", "nothing before it"),
        ("#f7a9a8", "4.00 nats"),
        ("#fbd4d3", "2.00 nats"),
        ("#ef5350", "80.00 nats"),
    ]


def test_html_is_a_page_or_a_part_of_one() -> None:
    assert to_html(LOSSES).startswith("<!doctype html>")
    part = to_html(LOSSES, is_page=False)
    assert part.startswith("<div") and part in to_html(LOSSES)


def test_terminal_shows_the_text_and_obeys_nothing_in_it() -> None:
    """A control character in a file would command the terminal; a coloured line break its rest."""
    shown = to_terminal(LOSSES)
    assert COLOUR.sub("", shown).startswith("a<&😀\n\ufffd[2J\n5 tokens, 21.500 nats each")
    assert "\x1b[0m\n" in shown
    assert next(match.groups() for match in COLOUR.finditer(shown)) == ("255", "255", "255")


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["a\r\n", "b"], "a\nb"),
        (["a\r", "\n", "b\r", "\nc"], "a\nb\nc"),
        (["a\r", "b", "\r\r\n"], "a\ufffdb\ufffd\n"),
        (["a\u00a0b", "\tc", "\ue000"], "a\u00a0b\tc\ue000"),
        (["a\x1b", "\x9b", "\u202e", "\u200b"], "a" + "\ufffd" * 4),
        (["\ud800", "a"], "\ufffda"),
    ],
    ids=["crlf", "crlf-apart", "cr", "blanks", "commands", "surrogate"],
)
def test_terminal_replaces_what_could_command_it_and_nothing_else(
    texts: list[str], shown: str
) -> None:
    """Every line end of a CRLF file, and every no-break space, was shown as U+FFFD."""
    assert COLOUR.sub("", to_terminal(losses_of(*texts))).startswith(f"{shown}\n{len(texts)} tok")


def test_a_single_token_has_no_figure() -> None:
    """'nan bits per byte' was told of it, and 0 nats."""
    for shown in (to_terminal(losses_of("a")), to_html(losses_of("a"))):
        assert re.search(r"(^|>)1 token; white is", shown, re.MULTILINE)
        assert "nan" not in shown and "bits" not in shown


def test_table_and_json_have_all_losses() -> None:
    assert to_table(LOSSES).splitlines()[1] == '4.0000\t"<&"'
    found = json.loads(to_json(LOSSES))
    assert found["losses"] == [None, 4.0, 1.0, 1.0, 80.0]
    assert found["total"] == 86.0 and found["texts"] == LOSSES.texts
    assert list(found) == ["tokens", "texts", "losses", "total", "bits_per_byte"]
    assert json.loads(to_json(losses_of("a")))["bits_per_byte"] is None


def test_inspect_offers_what_is_here() -> None:
    assert set(inspect.__all__) >= {"token_losses", "to_html", "to_terminal", "TokenLosses"}


# The command


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxcoder", "loss", *words])
    cli.main()


def test_command_prints_a_line_a_token(
    tiny_checkpoint: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "x.py").write_text(CODE)
    run_command(monkeypatch, str(tmp_path / "x.py"), "--model", str(tiny_checkpoint))
    assert capsysbinary.readouterr().out.decode() == to_table(token_losses(generator, CODE))


def test_command_writes_a_page(
    tiny_checkpoint: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "x.py").write_text(CODE)
    page = tmp_path / "x.html"
    run_command(
        monkeypatch, str(tmp_path / "x.py"), "--html", str(page), "--model", str(tiny_checkpoint)
    )
    assert page.read_text() == to_html(token_losses(generator, CODE))
    out, err = capsysbinary.readouterr()
    assert out == b"" and str(page) in err.decode()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "x.py: is empty"),
        (None, (), "x.py: cannot be read"),
        ("x", ("--html", "a.html", "--json"), "both --html and --json"),
        ("x", ("--html", "no/such/a.html"), "a.html"),
    ],
)
def test_command_says_what_is_wrong(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.py").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, "x.py", *options, "--model", str(tiny_checkpoint))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("jaxcoder: ") and message in error
