"""The demo's output: one completion, one infill in its place, the speed, what to do next."""

import re

import jax
import pytest

from jaxcoder import Generator, cli, showcase
from jaxcoder.invocation import command_line

pytest_plugins = ["tiny_checkpoint"]


def test_showcase(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are those of generate and infill, and the hole stands between prefix and suffix."""
    pieces: list[str] = []
    monkeypatch.setattr(showcase, "PROMPT", "x = ")
    monkeypatch.setattr(showcase, "PREFIX", "a")
    monkeypatch.setattr(showcase, "SUFFIX", "b")
    monkeypatch.setattr(showcase, "_COMPLETION_TOKENS", 4)
    monkeypatch.setattr(showcase, "_INFILL_TOKENS", 4)
    showcase.showcase(generator, pieces.append, command=".venv/bin/jaxcoder", is_demo_model=False)
    text = "".join(pieces)
    completion = generator.generate(
        "x = ", max_new_tokens=4, temperature=showcase._TEMPERATURE
    ).text
    assert f"\nx = {completion}\n" in text
    assert f"\na⟦{generator.infill('a', 'b', max_new_tokens=4).text}⟧b" in text
    assert re.search(r"--- \d+ tokens/s, a model of [\d,]+ parameters", text)
    assert "\n  .venv/bin/jaxcoder complete 'def fibonacci(n):' --model bigcode/tiny" in text
    assert "not to be used" not in text


def test_the_demo_command_shows_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["jaxcoder", "demo"])
    cli.main()
    out = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(Generator.from_pretrained().params))
    assert f"a model of {count:,} parameters" in out
    (warning,) = [line for line in out.splitlines() if "tiny" in line and "not to be used" in line]
    assert out.startswith(warning)
    assert f"\n  {command_line()} complete 'def fibonacci(n):'" in out
    assert showcase.PROMPT in out and f"{showcase.PREFIX}⟦" in out and f"⟧{showcase.SUFFIX}" in out
