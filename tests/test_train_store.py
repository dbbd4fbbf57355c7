"""The token store: made once, exact, verified at every start, and refused when it changed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.tokenizer import Tokenizer
from tests.tokenizer_files import byte_tokenizer_json, write_tokenizer
from train import store as store_module
from train import token_store
from train.config import SourceConfig, TrainConfig
from train.store import open_store
from train.token_store import TokenStore, document_ids

SENTINELS = "<fim_prefix>x<fim_suffix><|endoftext|><reponame><fim_middle>"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return make_tokenizer(tmp_path / "tokenizer")


def make_tokenizer(folder: Path, **changes: object) -> Tokenizer:
    folder.mkdir()
    return Tokenizer.from_file(write_tokenizer(folder, byte_tokenizer_json(**changes)))


def make_data(folder: Path, texts: dict[str, str | bytes]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def many(count: int) -> dict[str, str]:
    """Documents that do not repeat one another."""
    rng = np.random.default_rng(0)
    words = rng.integers(1 << 40, size=(count, 20))
    return {
        f"d{i:04}.py": "".join(f"v = {word:x}\n" for word in row) for i, row in enumerate(words)
    }


def config(data: Path | str, **source: object) -> TrainConfig:
    return TrainConfig(data=str(data), source=SourceConfig(**source))


def texts(store: TokenStore, tokenizer: Tokenizer) -> dict[str, str]:
    """Name -> text of every document, special tokens spelled."""
    return {
        name: tokenizer.decode(document_ids(store, i), skip_special=False)
        for i, name in enumerate(store.names)
    }


def folders(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def test_documents_come_back_exactly(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Text, line ends and text of special tokens; no end of text, no sentinel's id."""
    contents = {"a.py": "def f():\r\n\treturn 'é😀'\n", "b/c.py": SENTINELS, "d.py": "x"}
    store = open_store(config(make_data(tmp_path / "d", contents)), tokenizer, tmp_path / "c")
    assert store.names == ("a.py", "d.py", "b/c.py")
    assert texts(store, tokenizer) == contents
    assert not set(store.tokens.tolist()) & tokenizer.special_ids
    assert store.tokens.dtype == np.uint16 and isinstance(store.tokens, np.memmap)
    assert document_ids(store, 0).dtype == np.int32
    assert store.text_bytes.tolist() == [len(contents[name].encode()) for name in store.names]
    assert store.starts[-1] == store.tokens.size == store.report["tokens"]
    assert store.header_lengths.tolist() == [0, 0, 0]


def test_the_second_start_opens_what_the_first_made(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal in every field, without tokenising anything."""
    settings = config(make_data(tmp_path / "d", {**many(5), "bad.py": b"\0"}), error_budget=0.5)
    first = open_store(settings, tokenizer, tmp_path / "c")
    monkeypatch.setattr(store_module, "_tokenise", None)
    second = open_store(settings, tokenizer, tmp_path / "c")
    assert second.report == first.report
    assert second.names == first.names
    for name in set(TokenStore._fields) - {"report", "names"}:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_two_builds_have_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Order and content follow from the data alone."""
    settings = config(make_data(tmp_path / "d", many(20)))
    for cache in ("c1", "c2"):
        open_store(settings, tokenizer, tmp_path / cache)
    (one,), (two,) = folders(tmp_path / "c1"), folders(tmp_path / "c2")
    assert one.name == two.name
    assert (one / "tokens.bin").read_bytes() == (two / "tokens.bin").read_bytes()
    hashes = [
        json.loads((f / "manifest.json").read_text())["files"]["tokens.bin"] for f in (one, two)
    ]
    assert hashes[0] == hashes[1]


def test_the_report_counts_and_names_what_is_bad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Every reason with its number, the first twenty with their place; a lost byte is one too."""
    bad = {f"e{i:02}.py": "" for i in range(25)}
    bad |= {"n.py": b"x\0", "u.py": b"\xff", "l.py": "y" * 30, "t.py": "x = '\U00040000'"}
    data = make_data(tmp_path / "d", {**many(4), **bad})
    settings = config(data, max_line_chars=20, error_budget=0.2)
    report = open_store(settings, tokenizer, tmp_path / "c").report
    empty = report["bad"].pop("empty")
    assert empty == {"count": 25, "first": [f"e{i:02}.py" for i in range(20)]}
    assert report["bad"] == {
        "binary": {"count": 1, "first": ["n.py (NUL at character 1)"]},
        "long line": {"count": 1, "first": ["l.py (line 1: 30 characters)"]},
        "not UTF-8": {"count": 1, "first": ["u.py (byte 0: 0xff)"]},
        "no token": {"count": 1, "first": ["t.py (for some of its characters)"]},
    }
    assert report["documents"] == 4
    assert report["bytes"] == sum(len(text) for text in many(4).values())
    assert report["humaneval_overlap"] is None


def test_the_error_budget(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Two faults of ten pass a budget of 0.2 and stop below it; choices are no faults."""
    bad = {"u.py": b"\xff", "t.py": "x = '\U00040000'", "e.py": ""}
    data = make_data(tmp_path / "d", {**many(7), **bad})
    open_store(config(data, error_budget=0.2), tokenizer, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"2 of 10 documents cannot.*raise it\n.*\n.*\n.*t\.py"):
        open_store(config(data, error_budget=0.19, headers=True), tokenizer, tmp_path / "c2")
    assert folders(tmp_path / "c2") == []
    (data / "t.py").unlink()
    open_store(config(data, error_budget=0.12), tokenizer, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"1 of 9 documents cannot.*\n.*empty: 1.*\n.*u\.py"):
        open_store(config(data, error_budget=0.1), tokenizer, tmp_path / "c")


@pytest.mark.parametrize("files", [{}, {"a.py": ""}, {"a.txt": "x"}])
def test_no_document_is_an_error(
    tmp_path: Path, tokenizer: Tokenizer, files: dict[str, str]
) -> None:
    """An empty folder, one empty document, no file of the kind: said before anything is made."""
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="no document to train on"):
        open_store(config(make_data(tmp_path / "d", files)), tokenizer, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_one_document_of_one_character_is_enough(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Too short to be cut in three, but a document."""
    store = open_store(config(make_data(tmp_path / "d", {"a.py": "x"})), tokenizer, tmp_path / "c")
    assert store.starts.tolist() == [0, 1]


def test_the_validation_split_goes_by_content(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A document keeps its side when renamed, copied or joined by others; the share is met."""
    data = make_data(tmp_path / "d", many(120))
    before = open_store(config(data, validation_share=0.2), tokenizer, tmp_path / "c")
    side = dict(zip(before.names, before.is_validation.tolist(), strict=True))
    # 99.99 % of a binomial of 120 and 0.2.
    assert 8 <= sum(side.values()) == before.report["validation_documents"] <= 42
    for name in ("d0000.py", "d0001.py", "d0002.py"):
        (data / name).rename(data / f"z{name}")
    make_data(data, {f"copy/{name}": many(120)[name] for name in list(side)[3:]})
    after = open_store(config(data, validation_share=0.2), tokenizer, tmp_path / "c")
    for name, is_validation in zip(after.names, after.is_validation, strict=True):
        assert side[name.removeprefix("copy/").removeprefix("z")] == is_validation, name


def test_near_duplicates_and_overlap_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Two near copies of one document, and one document with a solution of the benchmark."""
    solution = "\n".join(f"    total += values[{i}] * weights[{i}]" for i in range(5))
    task = tmp_path / "HumanEval.jsonl"
    task.write_text(json.dumps({"prompt": "def f():\n", "canonical_solution": solution}))
    documents = many(6)
    first = documents["d0000.py"]
    documents |= {"e.py": first, "f.py": first + "x\n", "g.py": "def g():\n" + solution}
    settings = config(make_data(tmp_path / "d", documents), validation_share=0.0)
    store = open_store(settings, tokenizer, tmp_path / "c", human_eval=task)
    assert store.report["near_duplicates"] == 2
    assert store.repeats.tolist() == [-1, -1, -1, -1, -1, -1, 0, 0, -1]
    assert store.report["near_duplicates_across_split"] == 0
    assert store.report["humaneval_overlap"] == 1


def test_near_duplicates_across_the_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Near copies may fall on both sides; as many are counted as there are."""
    documents = {f"{i:02}.py": many(1)["d0000.py"] + f"{i}\n" for i in range(20)}
    settings = config(make_data(tmp_path / "d", documents), validation_share=0.5)
    store = open_store(settings, tokenizer, tmp_path / "c")
    across = store.is_validation[1:] != store.is_validation[store.repeats[1:]]
    assert store.report["near_duplicates"] == 19
    assert store.report["near_duplicates_across_split"] == across.sum() > 0


def test_headers_are_special_tokens_before_the_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """By flag: repository and path where they are known, typed sentinels in them as plain text."""
    rows = [
        {
            "content": "x = 1\n",
            "max_stars_repo_name": "a/b",
            "max_stars_repo_path": "<reponame>.py",
        },
        {"content": "y = 1\n", "max_stars_repo_path": "c.py"},
        {"content": "z = 1\n"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    store = open_store(config(path, headers=True), tokenizer, tmp_path / "c")
    assert list(texts(store, tokenizer).values()) == [
        "<reponame>a/b<filename><reponame>.py\nx = 1\n",
        "<filename>c.py\ny = 1\n",
        "z = 1\n",
    ]
    special = [[i for i in document_ids(store, n) if i in tokenizer.special_ids] for n in range(3)]
    assert special == [[18, 5], [5], []]
    for n, row in enumerate(rows):
        text = document_ids(store, n)[store.header_lengths[n] :]
        assert tokenizer.decode(text) == row["content"]
    assert store.text_bytes.tolist() == [6, 6, 6]
    plain = open_store(config(path), tokenizer, tmp_path / "c")
    assert list(texts(plain, tokenizer).values()) == [row["content"] for row in rows]


def test_headers_need_their_special_tokens(tmp_path: Path) -> None:
    """A tokenizer without <reponame> must not spell it in letters."""
    definition = byte_tokenizer_json()
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if token["content"] != "<reponame>"
    ]
    (tmp_path / "t").mkdir()
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path / "t", definition))
    settings = config(make_data(tmp_path / "d", {"a.py": "x"}), headers=True)
    with pytest.raises(ConfigError, match=r"source\.headers.*no special token <reponame>"):
        open_store(settings, tokenizer, tmp_path / "c")
    assert folders(tmp_path / "c") == []


# What changed: another store, or a refusal.


def test_changed_data_or_tokenizer_is_another_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Nothing is ever read from tokens of other data, whichever part is different."""
    data = make_data(tmp_path / "d", many(3))
    other = make_tokenizer(tmp_path / "t2", extra_merges=[("v", "Ġ=")])
    cache = tmp_path / "c"
    open_store(config(data), tokenizer, cache)
    assert len(folders(cache)) == 1
    open_store(config(data, error_budget=0.3), tokenizer, cache)
    assert len(folders(cache)) == 1
    open_store(config(data), other, cache)
    open_store(config(data, headers=True), tokenizer, cache)
    open_store(config(data, validation_share=0.5), tokenizer, cache)
    assert len(folders(cache)) == 4
    (data / "d0001.py").write_text("changed = 1\n")
    changed = open_store(config(data), tokenizer, cache)
    assert len(folders(cache)) == 5
    assert texts(changed, tokenizer)["d0001.py"] == "changed = 1\n"


def test_the_order_of_merges_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Two tokenizers with the same tokens and ids may split "ded" in two ways."""
    definition = byte_tokenizer_json(extra_merges=[("e", "d")])
    prints = []
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path / name, definition))
        settings = config(make_data(tmp_path / "d", {"a.py": "x"}))
        prints.append(open_store(settings, tokenizer, tmp_path / "c").report["fingerprint"])
        definition["model"]["merges"].insert(0, definition["model"]["merges"].pop())
    assert prints[0].pop("tokenizer") != prints[1].pop("tokenizer")
    assert prints[0] == prints[1]


@pytest.mark.parametrize("change", ["edit", "delete", "rename", "add", "tokenizer", "headers"])
def test_a_resumed_run_is_refused_other_data(
    tmp_path: Path, tokenizer: Tokenizer, change: str
) -> None:
    """With both fingerprints, before anything is tokenised: the batches would be others."""
    data = make_data(tmp_path / "d", many(3))
    settings, cache = config(data), tmp_path / "c"
    then = open_store(settings, tokenizer, cache).report["fingerprint"]
    assert open_store(settings, tokenizer, cache, expected=then).report["fingerprint"] == then
    file = data / "d0001.py"
    if change == "edit":
        file.write_text(file.read_text() + "\n")
    elif change == "delete":
        file.unlink()
    elif change == "rename":
        file.rename(data / "d0001a.py")
    elif change == "add":
        (data / "new.py").write_text("x")
    elif change == "tokenizer":
        tokenizer = make_tokenizer(tmp_path / "t2", extra_merges=[("v", "Ġ=")])
    else:
        settings = config(data, headers=True)
    part = {"tokenizer": "tokenizer", "headers": "headers"}.get(change, "documents")
    with pytest.raises(ConfigError, match=rf"{part}: {then[part]} when the run began, \w+ now"):
        open_store(settings, tokenizer, cache, expected=then)
    assert len(folders(cache)) == 1


@pytest.mark.parametrize("file", ["tokens.bin", "documents.npz", "names.json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "deleted"])
def test_a_damaged_store_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, file: str, damage: str
) -> None:
    """Size and hash of every file are checked before it is used; an odd size is one of them."""
    settings = config(make_data(tmp_path / "d", many(3)))
    open_store(settings, tokenizer, tmp_path / "c")
    path = folders(tmp_path / "c")[0] / file
    raw = path.read_bytes()
    flipped = bytes([raw[0] ^ 1]) + raw[1:]
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[:-1], "longer": raw + b"\0", "flipped": flipped}[damage])
    message = {"deleted": "no such file", "flipped": "SHA-256"}.get(damage, rf"expected {len(raw)}")
    with pytest.raises(ConfigError, match=rf"{file}: .*{message}.*delete the folder"):
        open_store(settings, tokenizer, tmp_path / "c")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fingerprint", {"documents": "aa"}, "fingerprint: .*aa.*, expected .*documents"),
        ("type", "<u4", "type: <u4, expected <u2"),
        ("vocab_size", 300, "vocab_size: 300, expected 276"),
        ("format", 0, "format: 0, expected 1"),
        ("files", [], "expected files and report to be objects"),
        ("report", None, "expected files and report to be objects"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, field: str, value: object, message: str
) -> None:
    """A folder copied or renamed by hand shows in its manifest."""
    settings = config(make_data(tmp_path / "d", many(3)))
    open_store(settings, tokenizer, tmp_path / "c")
    path = folders(tmp_path / "c")[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(ConfigError, match=message):
        open_store(settings, tokenizer, tmp_path / "c")


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """On a device such an id would be clamped without a word."""
    folder = tmp_path / "s"
    folder.mkdir()
    writer = token_store.StoreWriter(folder, 276)
    writer.add("a", np.array([20, 276]), text_bytes=2, header=0, is_validation=False)
    writer.finish({}, repeats=np.array([-1]), report={})
    with pytest.raises(ConfigError, match="holds id 276, expected ids below 276"):
        token_store.open_folder(folder, {}, 276)


@pytest.mark.parametrize(("vocab_size", "bytes_each"), [(65_536, 2), (65_537, 4)])
def test_the_type_holds_every_id(tmp_path: Path, vocab_size: int, bytes_each: int) -> None:
    """Two bytes up to 65,536 entries, else four: the largest id survives."""
    writer = token_store.StoreWriter(tmp_path, vocab_size)
    writer.add("a", np.array([0, vocab_size - 1]), text_bytes=2, header=0, is_validation=False)
    writer.finish({}, repeats=np.array([-1]), report={})
    store = token_store.open_folder(tmp_path, {}, vocab_size)
    assert store.tokens.dtype.itemsize == bytes_each
    assert document_ids(store, 0).tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize("damage", ["cut", "flipped", "deleted"])
def test_a_file_that_changes_during_training_is_noticed(
    tmp_path: Path, tokenizer: Tokenizer, damage: str
) -> None:
    """Reading past the end of a mapped file would kill the process without a message."""
    settings = config(make_data(tmp_path / "d", many(3)))
    store = open_store(settings, tokenizer, tmp_path / "c")
    path = folders(tmp_path / "c")[0] / "tokens.bin"
    document_ids(store, 2)
    if damage == "deleted":
        path.unlink()
    else:
        with path.open("r+b") as file:
            if damage == "cut":
                file.truncate(10)
            else:
                file.seek(-1, 2)
                file.write(b"\xff")
    with pytest.raises(ConfigError, match=r"tokens\.bin: (document 2 \(d0002\.py\)|0|10)"):
        document_ids(store, 2)
    if damage == "flipped":
        document_ids(store, 0)


# Interrupted and hindered builds.


def test_data_that_changes_between_the_two_readings(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed must be what is tokenised."""
    data = make_data(tmp_path / "d", many(3))
    build = store_module._build

    def edit_then_build(*arguments: object) -> None:
        (data / "d0001.py").write_text("changed = 1\n")
        build(*arguments)

    monkeypatch.setattr(store_module, "_build", edit_then_build)
    with pytest.raises(ConfigError, match="changed while it was read; nothing was stored"):
        open_store(config(data), tokenizer, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle: the next start begins anew."""
    settings = config(make_data(tmp_path / "d", many(3)))

    def interrupt(ids: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module, "signature", interrupt)
        open_store(settings, tokenizer, tmp_path / "c")
    assert folders(tmp_path / "c") == []
    assert open_store(settings, tokenizer, tmp_path / "c").report["documents"] == 3


def test_two_runs_that_build_the_same_store(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one takes what the earlier one has finished meanwhile."""
    settings = config(make_data(tmp_path / "d", many(3)))
    cache = tmp_path / "c"
    build = store_module._build

    def lose_the_race(*arguments: object) -> None:
        build(*arguments)
        build(*arguments)

    monkeypatch.setattr(store_module, "_build", lose_the_race)
    assert open_store(settings, tokenizer, cache).report["documents"] == 3
    assert len(folders(cache)) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One error with the path, as for any folder this project writes."""
    (tmp_path / "c").write_text("a file")
    settings = config(make_data(tmp_path / "d", many(3)))
    with pytest.raises(CheckpointError, match="cannot be written"):
        open_store(settings, tokenizer, tmp_path / "c")


def test_starcoder_tokenizer(tmp_path: Path, shared_data: Path) -> None:
    """The published tokenizer: exact text, headers with its ids for <reponame> and <filename>."""
    tokenizer = Tokenizer.from_file(shared_data / "starcoder-tokenizer" / "tokenizer.json")
    contents = {"a/b.py": f"x = '{SENTINELS} é😀'\r\n", "c.py": "def f(x):\n    return x\n"}
    settings = config(make_data(tmp_path / "data", contents))
    assert texts(open_store(settings, tokenizer, tmp_path / "c"), tokenizer) == contents
    settings = dataclasses.replace(settings, source=SourceConfig(headers=True))
    ids = document_ids(open_store(settings, tokenizer, tmp_path / "c"), 1).tolist()
    assert ids[0] == 18 and ids.count(5) == 1
    assert tokenizer.decode(ids, skip_special=False).startswith("<reponame>data<filename>a/b.py\n")
