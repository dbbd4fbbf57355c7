"""The ``jaxcoder`` command: complete, infill, loss, demo, info.

Text goes to standard output exactly as decoded, and nothing else does; what is said about device,
licence and errors goes to standard error. A mistake is exit status 2: a value or a file is named in
one line, wrong usage in tyro's box.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import tyro

from .completion import Completion
from .diagnostics import say
from .durable import replace_file
from .info import describe, format_description
from .invocation import command_line
from .loss_views import to_html, to_json, to_table, to_terminal
from .options import DEFAULT_MODEL, DEFAULT_SAMPLING, Model, Sampling
from .showcase import showcase
from .streams import read_standard_input, read_text, standard_output, write, write_pieces
from .token_losses import token_losses

# Plain `str | None` would read the prompt "None" as no prompt at all.
Text = Annotated[
    str | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PROMPT",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True)
class Complete:
    """Continue a prompt given as an argument, in a file, or on standard input."""

    prompt: tyro.conf.Positional[Text] = None
    """The text to continue; by default --file, else standard input."""
    file: Annotated[Path | None, tyro.conf.arg(aliases=["-f"])] = None
    """Read the prompt from this file."""
    special: bool = False
    """Read special tokens, such as <fim_prefix>, that the prompt spells."""
    json: bool = False
    """Print JSON: text, tokens, logprobs, finish_reason and timings; a list of n with --n."""
    model: Model = DEFAULT_MODEL
    sampling: Sampling = DEFAULT_SAMPLING

    def run(self) -> None:
        """Print the text, or its JSON."""
        if self.prompt is not None and self.file is not None:
            raise ValueError("both a prompt and --file were given; give one")
        self.sampling.check(as_json=self.json)
        if self.prompt is not None:
            prompt = self.prompt
        else:
            prompt = read_text(self.file) if self.file else read_standard_input()
        generator = self.model.load()
        arguments = self.sampling.arguments() | {"special": self.special}
        if self.json:
            _print_json(generator.generate(prompt, n=self.sampling.n, **arguments))
        else:
            write_pieces(generator.stream(prompt, **arguments))


@dataclass(frozen=True)
class Infill:
    """Write what is missing in a file at a place, or between two files."""

    file: tyro.conf.Positional[Path | None] = None
    """The file with the hole."""
    at: str | None = None
    """LINE:COL of the hole, from 1, columns in characters; 12:1 is before line 12's first."""
    prefix_file: Path | None = None
    """Instead of FILE: the text before the hole."""
    suffix_file: Path | None = None
    """Instead of FILE: the text after the hole."""
    mode: Literal["psm", "spm"] = "psm"
    """Order of the pieces in the prompt."""
    full: bool = False
    """Print the whole file with the hole filled, not the middle alone."""
    in_place: bool = False
    """Write the whole file back, atomically, and print nothing."""
    json: bool = False
    """Print what `complete --json` does, and what was trimmed."""
    model: Model = DEFAULT_MODEL
    sampling: Sampling = DEFAULT_SAMPLING

    def run(self) -> None:
        """Print the middle, the whole file or JSON, or write the file."""
        if self.in_place and (self.file is None or self.json or self.full):
            raise ValueError("--in-place needs FILE and goes with neither --json nor --full")
        if self.json and self.full:
            raise ValueError("both --json and --full were given; give one")
        self.sampling.check(as_json=self.json)
        prefix, suffix = self._sides()
        generator = self.model.load()
        arguments = self.sampling.arguments()
        if self.json:
            n = self.sampling.n
            _print_json(generator.infill(prefix, suffix, mode=self.mode, n=n, **arguments))
            return
        if self.in_place and self.file is not None:
            middle = generator.infill(prefix, suffix, mode=self.mode, **arguments)
            _say_trimmed(middle.trimmed)
            if read_text(self.file) != prefix + suffix:
                raise ValueError(
                    f"{self.file}: was changed while the middle was written; it is left as "
                    "it is now. Run the command again"
                )
            replace_file(self.file, (prefix + middle.text + suffix).encode())
            return
        asked = generator.infill_prompt(
            prefix, suffix, mode=self.mode, max_new_tokens=self.sampling.max_new_tokens
        )
        _say_trimmed(asked.trimmed)
        pieces = generator.stream(asked.tokens, **arguments)
        write_pieces(_surrounded(prefix, pieces, suffix) if self.full else pieces)

    def _sides(self) -> tuple[str, str]:
        between = self.prefix_file is not None or self.suffix_file is not None
        if (self.file is not None) == between:
            raise ValueError("give FILE with --at, or --prefix-file and --suffix-file")
        if self.file is not None:
            if self.at is None:
                raise ValueError(
                    "--at is missing: the place of the hole in FILE, as LINE:COL such as 12:1"
                )
            return split_at(read_text(self.file), self.at)
        if self.at is not None:
            raise ValueError("--at goes with FILE, not with --prefix-file and --suffix-file")
        prefix = read_text(self.prefix_file) if self.prefix_file else ""
        return prefix, read_text(self.suffix_file) if self.suffix_file else ""


@dataclass(frozen=True)
class Loss:
    """Show how well the model expected each token of a file: in colours on a terminal, as a page,
    or else a line a token."""

    file: tyro.conf.Positional[Path]
    """The file, UTF-8; one longer than the context is read in windows that overlap by half."""
    html: Path | None = None
    """Write a page here instead, over a file that is there."""
    json: bool = False
    """Print one JSON object: tokens, texts, losses in nats, total, bits_per_byte."""
    model: Model = DEFAULT_MODEL

    def run(self) -> None:
        """Print or write the view."""
        if self.html is not None and self.json:
            raise ValueError("both --html and --json were given; give one")
        text = read_text(self.file)
        if not text:
            raise ValueError(f"{self.file}: is empty, expected text to take the loss of")
        losses = token_losses(self.model.load(), text)
        if self.html is not None:
            replace_file(self.html, to_html(losses).encode())
            say(f"jaxcoder: {self.html}: the page, for a browser")
        elif self.json:
            write(to_json(losses))
        else:
            write((to_terminal if standard_output().isatty() else to_table)(losses))


@dataclass(frozen=True)
class Demo:
    """Show a completion, an infill in its place, and the speed."""

    model: Model = DEFAULT_MODEL

    def run(self) -> None:
        """Show it."""
        showcase(
            self.model.load(),
            write,
            command=command_line(),
            is_demo_model=self.model.model is None,
        )


@dataclass(frozen=True)
class Info:
    """Say what a checkpoint holds and what memory it needs."""

    context: int | None = None
    """Tokens of context to state the cache's memory for; by default all positions."""
    json: bool = False
    """Print one JSON object."""
    model: Model = DEFAULT_MODEL

    def run(self) -> None:
        """Print it."""
        description = describe(self.model.load(), context=self.context)
        write((json.dumps(description) if self.json else format_description(description)) + "\n")


def split_at(text: str, at: str) -> tuple[str, str]:
    """Cut `text` at "LINE:COL", both from 1, columns in characters.

    COL may be one past the line's last character; one line past the last is the end of the text.

    Raises:
      ValueError: not LINE:COL, or no such place.
    """
    line_text, separator, column_text = at.partition(":")
    if not (separator and line_text.isdecimal() and column_text.isdecimal()):
        raise ValueError(f"--at is {at!r}, expected LINE:COL such as 12:1")
    line, column = int(line_text), int(column_text)
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise ValueError(f"--at is {at!r}, but the file has lines 1 to {len(lines)}")
    if not 1 <= column <= len(lines[line - 1]) + 1:
        raise ValueError(
            f"--at is {at!r}, but line {line} has columns 1 to {len(lines[line - 1]) + 1}"
        )
    offset = sum(len(earlier) + 1 for earlier in lines[: line - 1]) + column - 1
    return text[:offset], text[offset:]


def _surrounded(prefix: str, pieces: Iterator[str], suffix: str) -> Iterator[str]:
    yield prefix
    yield from pieces
    yield suffix


def _print_json(completions: Completion | list[Completion]) -> None:
    def fields(completion: Completion) -> dict[str, Any]:
        return dataclasses.asdict(completion) | {"timings": completion.timings._asdict()}

    is_single = isinstance(completions, Completion)
    shown = fields(completions) if is_single else [fields(each) for each in completions]
    write(json.dumps(shown) + "\n")


def _say_trimmed(trimmed: tuple[int, int]) -> None:
    if any(trimmed):
        say(
            f"jaxcoder: the file exceeds the context: {trimmed[0]} tokens before and "
            f"{trimmed[1]} after the hole were left out"
        )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line  # where it came from means nothing to the reader
    say(f"jaxcoder: {message}")


def main() -> None:
    """Parse the command line and run the command; __main__.py is the entry point."""
    warnings.showwarning = _show_warning  # one line, as errors are
    command = tyro.cli(
        tyro.conf.OmitArgPrefixes[
            Annotated[Complete, tyro.conf.subcommand("complete")]
            | Annotated[Infill, tyro.conf.subcommand("infill")]
            | Annotated[Loss, tyro.conf.subcommand("loss")]
            | Annotated[Demo, tyro.conf.subcommand("demo")]
            | Annotated[Info, tyro.conf.subcommand("info")]
        ],
        prog="jaxcoder",
        description="TinyStarCoderPy in JAX: complete and infill code.",
    )
    try:
        command.run()
    except ValueError as exc:
        say(f"jaxcoder: {exc}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
