"""Documents of every kind of source, and what becomes of those that cannot be used."""

import dataclasses
import gzip
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxcoder.errors import ConfigError
from train import sources
from train.config import SourceConfig
from train.sources import BadDocument, Document, hold_out, read_documents, stdlib_folder

SOURCE = SourceConfig()


def read(data: object, source: SourceConfig = SOURCE) -> list[Document | BadDocument]:
    return list(read_documents(str(data), source))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_jsonl(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def only(found: list[Document | BadDocument]) -> Document | BadDocument:
    assert len(found) == 1
    return found[0]


# Folders.


def test_a_folder_is_read_by_glob_in_the_order_of_names(tmp_path: Path) -> None:
    """The order decides the data's: it must not be that of the file system."""
    write(tmp_path, {name: b"x" for name in ("b.py", "a/z.py", "a.txt", "a/y/x.py", "a.py")})
    assert [d.name for d in read(tmp_path)] == ["a.py", "b.py", "a/z.py", "a/y/x.py"]
    source = dataclasses.replace(SOURCE, globs=("*.py", "*.txt"), exclude=("b*",))
    names = [f"{i:02}/{j:02}.py" for i in range(8) for j in range(8)]
    write(tmp_path / "many", {names[i * 37 % 64]: b"x" for i in range(64)})
    assert [d.name for d in read(tmp_path / "many")] == names
    assert [d.name for d in read(tmp_path, source)] == ["a.py", "a.txt"]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("**/*.py", {"a.py", "p/b.py", "p/q/c.py"}),
        ("*.py", {"a.py"}),
        ("p/**", {"p/b.py", "p/q/c.py", "p/n.txt"}),
        ("p/*", {"p/b.py", "p/n.txt"}),
        ("?.py", {"a.py"}),
        ("**/q/*", {"p/q/c.py"}),
        ("a[.]py", set()),
    ],
)
def test_globs(tmp_path: Path, glob: str, names: set[str]) -> None:
    """`*` stops at a slash, `**` does not; the same rule excludes."""
    write(tmp_path, {name: b"x" for name in ("a.py", "p/b.py", "p/q/c.py", "p/n.txt")})
    everything = {d.name for d in read(tmp_path, dataclasses.replace(SOURCE, globs=("**",)))}
    assert {d.name for d in read(tmp_path, dataclasses.replace(SOURCE, globs=(glob,)))} == names
    without = dataclasses.replace(SOURCE, globs=("**",), exclude=(glob,))
    assert {d.name for d in read(tmp_path, without)} == everything - names


def test_hidden_files_and_links_to_folders_are_left_out(tmp_path: Path) -> None:
    """A virtual environment in .venv is not one's code, and a link may lead into a circle."""
    write(tmp_path, {".venv/lib/a.py": b"x", ".b.py": b"x", "c/d.py": b"x"})
    (tmp_path / "e").symlink_to(tmp_path, target_is_directory=True)
    assert [d.name for d in read(tmp_path)] == ["c/d.py"]


def test_text_is_exact_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    """Line ends, tabs, trailing blanks and characters beyond ASCII arrive as they are."""
    text = "\tx = 'é😀'  \r\ny = 1\rz = 2\x0c\n\n"
    write(tmp_path, {"a.py": text.encode(), "b.py": b"\xef\xbb\xbf" + text.encode()})
    assert [d.text for d in read(tmp_path)] == [text, text]


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", ""),
        (b" \r\n\t\n", "empty", ""),
        (b"\xef\xbb\xbf", "empty", ""),
        (b"x = 1\n\xff\n", "not UTF-8", "byte 6: 0xff"),
        ("x = 'é'".encode("latin-1"), "not UTF-8", "byte 5: 0xe9"),
        ("x = 1".encode("utf-16"), "not UTF-8", "byte 0: 0xff"),
        (b"x = \0", "binary", "NUL at character 4"),
        (b"\x7fELF\x02\x01\x01\0\0", "binary", "NUL at character 7"),
        (b"x\n" + b"y" * 2001, "long line", "line 2: 2001 characters"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(
    tmp_path: Path, content: bytes, reason: str, detail: str
) -> None:
    """The files beside a bad one are read all the same."""
    write(tmp_path, {"a.py": b"x", "b.py": content, "c.py": b"y" * 2000})
    first, bad, last = read(tmp_path)
    assert isinstance(first, Document) and isinstance(last, Document)
    assert bad == BadDocument("b.py", reason, detail)


def test_a_huge_file_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes in one file are a database dump, not a document."""
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    write(tmp_path, {"a.py": b"x\n" * 50, "b.py": b"x\n" * 50 + b"y"})
    good, bad = read(tmp_path)
    assert isinstance(good, Document)
    assert bad == BadDocument("b.py", "too large", "more than 100 bytes")


def test_what_is_no_file_or_cannot_be_opened_is_counted(tmp_path: Path) -> None:
    """A FIFO must not be waited for; a dangling link is bad, not fatal."""
    os.mkfifo(tmp_path / "a.py")
    (tmp_path / "b.py").symlink_to("nowhere")
    write(tmp_path, {"c.py": b"x"})
    fifo, link, good = read(tmp_path)
    assert isinstance(fifo, BadDocument) and fifo.reason == "unreadable"
    assert "a FIFO" in fifo.detail
    assert isinstance(link, BadDocument) and "dangling link" in link.detail
    assert isinstance(good, Document)


def test_a_file_name_that_is_not_utf8_is_spelled_so(tmp_path: Path) -> None:
    """Names are stored as UTF-8; one that is not must not end the run."""
    path = os.fsencode(tmp_path) + b"/a\xff.py"
    try:
        Path(os.fsdecode(path)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    document = only(read(tmp_path))
    assert isinstance(document, Document)
    assert document.name == r"a\udcff.py"


def test_files_are_opened_one_after_the_other(tmp_path: Path) -> None:
    """Ten million files need no memory for their texts; one that is gone by its turn is counted."""
    write(tmp_path, {"a.py": b"x", "b.py": b"x", "c.py": b"x"})
    documents = read_documents(str(tmp_path), SOURCE)
    assert next(documents) == Document("a.py", "x", tmp_path.name, "a.py")
    (tmp_path / "b.py").unlink()
    (tmp_path / "c.py").write_text("y")
    gone, changed = documents
    assert isinstance(gone, BadDocument) and gone.reason == "unreadable"
    assert isinstance(changed, Document) and changed.text == "y"


# JSONL.


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"content": "x"', "bad JSON", "line 1 column 16"),
        ("[]", "bad JSON", "holds a JSON list"),
        ('{"text": "x"}', "missing field", "content"),
        ('{"content": 3}', "not a string", "content: int"),
        ('{"content": null}', "not a string", "content: NoneType"),
        ('{"content": "x", "content": "y"}', "bad JSON", "duplicate key 'content'"),
        ('{"content": "\\ud800"}', "not UTF-8", "lone surrogate at character 0"),
        ('{"content": ""}', "empty", ""),
        ('{"content": "x\\u0000"}', "binary", "NUL"),
        ('{"content": "' + "y" * 2001 + '"}', "long line", "line 1"),
        ("[" * 100_000, "bad JSON", "nested too deeply"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_its_number(
    tmp_path: Path, line: str, reason: str, detail: str
) -> None:
    """A broken line costs that line."""
    good = '{"content": "x"}'
    path = write_jsonl(tmp_path / "d.jsonl", good, "", line, good)
    first, bad, last = read(path)
    assert (first.name, last.name) == ("d.jsonl:1", "d.jsonl:4")
    assert isinstance(bad, BadDocument)
    assert (bad.name, bad.reason) == ("d.jsonl:3", reason)
    assert detail in bad.detail


def test_jsonl_that_is_not_utf8(tmp_path: Path) -> None:
    """The encoding of one line says nothing of the others."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"content": "\xff"}\n{"content": "x"}')
    bad, good = read(path)
    assert isinstance(bad, BadDocument) and bad.reason == "bad JSON" and "not UTF-8" in bad.detail
    assert good == Document("d.jsonl:2", "x")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_huge_line_is_skipped_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The line after it is read, and has the right number."""
    monkeypatch.setattr(sources, "MOST_BYTES", 64)
    lines = ['{"content": "' + "x" * 500 + '"}', '{"content": "x"}']
    raw = "\n".join(lines).encode()
    path = tmp_path / f"d{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    assert read(path) == [
        BadDocument("d" + suffix + ":1", "too large", "more than 64 bytes"),
        Document("d" + suffix + ":2", "x"),
    ]


def test_field_repository_and_path_of_a_row(tmp_path: Path) -> None:
    """StarCoderData's own fields tell the headers; without them there is none."""
    row = {"code": "x", "max_stars_repo_name": "a/b", "max_stars_repo_path": "c/d.py"}
    path = write_jsonl(tmp_path / "d.jsonl", json.dumps(row), '{"code": "y"}')
    first, second = read(path, dataclasses.replace(SOURCE, field="code"))
    assert first == Document("d.jsonl:1", "x", "a/b", "c/d.py")
    assert second == Document("d.jsonl:2", "y", "", "")


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_gzip_file_stops(tmp_path: Path, damage: str) -> None:
    """What is lost behind the damage cannot be counted, so it cannot be within a budget."""
    rows = [json.dumps({"content": f"x = {i} # {i * 7919}"}) for i in range(2000)]
    raw = gzip.compress("\n".join(rows).encode())
    middle = len(raw) // 2
    contents = {
        "cut": raw[:middle],
        "flipped": raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :],
        "not gzip": b'{"content": "x"}\n',
    }
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(contents[damage])
    with pytest.raises(ConfigError, match=r"d\.jsonl\.gz:\d+: damaged gzip file"):
        read(path)


# Other sources, and none.


def test_the_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library alone, nothing that was installed beside it, and `exclude` holds for it too."""
    names = ("json/decoder.py", "site-packages/p/a.py", "dist-packages/b.py", "x/__pycache__/c.py")
    write(tmp_path, {name: b"x" for name in names})
    monkeypatch.setattr(sources, "stdlib_folder", lambda: tmp_path)
    document = only(read("stdlib"))
    assert document == Document("json/decoder.py", "x", "python/cpython", "Lib/json/decoder.py")
    assert read("stdlib", dataclasses.replace(SOURCE, exclude=("json/**",))) == []


def test_the_real_standard_library() -> None:
    """It is there, it is Python, and it reads without an error."""
    found = read("stdlib", dataclasses.replace(SOURCE, globs=("json/*.py",)))
    assert {"json/__init__.py", "json/decoder.py"} <= {document.name for document in found}
    assert (stdlib_folder() / "json/decoder.py").is_file()
    assert all(isinstance(document, Document) for document in found)


def test_held_out_packages_and_the_rest_are_all_there_is(tmp_path: Path) -> None:
    """No document is in both, and none is lost; a name is that of a package or of a module."""
    write(tmp_path, {n: b"x" for n in ("json/a.py", "json/b/c.py", "this.py", "jsonx.py", "z.py")})
    train, held_out = hold_out(SOURCE, ("json", "this"))
    assert {d.name for d in read(tmp_path, train)} == {"jsonx.py", "z.py"}
    assert {d.name for d in read(tmp_path, held_out)} == {"json/a.py", "json/b/c.py", "this.py"}


@pytest.mark.parametrize("name", ["", "missing", "a.py", "a.jsonl.bz2"])
def test_data_that_is_no_source(tmp_path: Path, name: str) -> None:
    """One error at the call, with what would have been right."""
    write(tmp_path, {"a.py": b"x", "a.jsonl.bz2": b"x"})
    with pytest.raises(ConfigError, match=r"expected a folder, a \.jsonl or \.jsonl\.gz file"):
        read_documents(str(tmp_path / name) if name else "", SOURCE)


def hugging_face_rows(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[Any]:
    """Put a `datasets` package in place that has these rows; returns the calls made to it."""
    calls = []

    class Rows(list):
        column_names = ("content", "max_stars_repo_name")

    def load_dataset(name: str, *, data_dir: str | None, split: str) -> Rows:
        calls.append((name, data_dir, split))
        if name == "no/such":
            raise FileNotFoundError("404")
        return Rows(rows)

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_hugging_face_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, folder and split reach the package; rows are checked as those of JSONL are."""
    rows = [{"content": "x", "max_stars_repo_name": "a/b"}, {"content": None}]
    calls = hugging_face_rows(monkeypatch, rows)
    source = dataclasses.replace(SOURCE, hf_data_dir="python", hf_split="train[:1%]")
    assert read("hf:o/n", source) == [
        Document("o/n:0", "x", "a/b", ""),
        BadDocument("o/n:1", "not a string", "content: NoneType"),
    ]
    assert calls == [("o/n", "python", "train[:1%]")]


def test_a_hugging_face_data_set_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any row: no package, no name, no such data set, no such field."""
    hugging_face_rows(monkeypatch, [])
    with pytest.raises(ConfigError, match=r"source\.field: 'code' is not in hf:o/n, which has con"):
        read_documents("hf:o/n", dataclasses.replace(SOURCE, field="code"))
    with pytest.raises(ConfigError, match=r"hf:no/such'.*FileNotFoundError: 404.*hf auth login"):
        read_documents("hf:no/such", SOURCE)
    with pytest.raises(ConfigError, match="expected a name after it"):
        read_documents("hf:", SOURCE)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the `datasets` package.*pip install datasets"):
        read_documents("hf:o/n", SOURCE)


def test_a_hugging_face_row_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before it came; the error names data set and row."""

    def rows() -> Iterator[dict[str, Any]]:
        yield {"content": "x"}
        raise OSError("connection lost")

    class Rows:
        column_names = ("content",)
        __iter__ = staticmethod(rows)

    hugging_face_rows(monkeypatch, [])
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: Rows())
    documents = iter(read_documents("hf:o/n", SOURCE))
    assert next(documents) == Document("o/n:0", "x", "", "")
    with pytest.raises(ConfigError, match=r"hf:o/n': row 1 cannot.*OSError: connection lost"):
        next(documents)
