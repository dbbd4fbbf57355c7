"""Every kind of damaged checkpoint gives one error that names the file and the fault.

The numbers are those of a list of faults: 1-9 the file format, 10-15 the tensors, 16-17 other
formats, 18 the index, 19-20 names and numbers, 21 odd files, 22 the manifest, 23 modes, 24
truncation. A case damages a copy of a valid checkpoint: "plain" (as others write it), "own" (with
our manifest), "sharded" (with an index, no manifest) or "own-sharded" (with both).
"""

import json
import os
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoint_files import (
    MQA,
    edit_json,
    join_file,
    random_tensors,
    snapshot,
    split_file,
    write_json,
    write_plain,
)

from jaxcoder.checkpoint import load_checkpoint, save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError
from jaxcoder.hf_names import params_from_hf, tensor_shapes
from jaxcoder.safetensors_file import read_header, write_safetensors
from jaxcoder.safetensors_header import TensorInfo
from jaxcoder.tensor_checks import match_tensors

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "jaxcoder_manifest.json"
LN_F = "transformer.ln_f.bias"
WTE = "transformer.wte.weight"
C_FC = "transformer.h.1.mlp.c_fc.weight"
SQUARE = "transformer.h.1.attn.c_proj.weight"

CPU_SECONDS = 5


class Case(NamedTuple):
    """One fault: what it damages in the folder, and words the error must contain."""

    id: str
    damage: Callable[[Path], object]
    words: tuple[str, ...]
    base: str = "plain"


# --- how a case damages a file -------------------------------------------------------------------


def content(raw: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / FILE).write_bytes(raw)


def prefix(length: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        raw = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(length.to_bytes(8, "little") + raw[8:])

    return damage


def header_text(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        header, data = split_file(folder / FILE)
        join_file(folder / FILE, change(json.dumps(header).encode()), data)

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        fields, data = split_file(folder / FILE)
        change(fields)
        join_file(folder / FILE, fields, data)

    return damage


def entry(name: str, **changes: Any) -> Callable[[Path], object]:
    return header(lambda fields: fields[name].update(changes))


def renamed(old: str, new: str) -> Callable[[Path], object]:
    return header(lambda fields: fields.update({new: fields.pop(old)}))


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    """Rewrite the weights, well-formed, with other tensors; manifest and index stay."""

    def damage(folder: Path) -> None:
        arrays = random_tensors(MQA)
        change(arrays)
        write_safetensors(folder / FILE, arrays)

    return damage


def value(name: str, number: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays[name].reshape(-1).__setitem__(slice(0, 2), number)


def swapped(one: str, other: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.update({one: arrays[other], other: arrays[one]})


def swapped_layers(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if ".h.0." in name]:
        swapped(name, name.replace(".h.0.", ".h.1."))(arrays)


def transposed(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.update({name: arrays[name].T})


def config_of(other: ModelConfig) -> Callable[[Path], object]:
    return lambda folder: write_json(folder / "config.json", other.to_hf_config())


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / INDEX).read_text())
        change(fields)
        write_json(folder / INDEX, fields)

    return damage


def listed(name: str, file: Any) -> Callable[[Path], object]:
    return index(lambda fields: fields["weight_map"].update({name: file}))


def in_two_shards(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    fields, data = split_file(second)
    name = next(name for name in split_file(first)[0] if name != "__metadata__")
    fields["copy"] = {"dtype": "F16", "shape": [0], "data_offsets": [len(data)] * 2}
    text = json.dumps(fields).replace('"copy"', json.dumps(name))
    join_file(second, text.encode(), data)


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / MANIFEST).read_text())
        change(fields)
        write_json(folder / MANIFEST, fields)

    return damage


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Replace the weights by what `make` puts at their path."""

    def damage(folder: Path) -> None:
        (folder / FILE).unlink()
        make(folder / FILE)

    return damage


def only(file_name: str) -> Callable[[Path], object]:
    """A folder whose only weights are a pickle that would say so if it were opened."""

    def damage(folder: Path) -> None:
        (folder / FILE).unlink()
        # Opened by anyone, a FIFO without a writer hangs, and the test's alarm goes off.
        os.mkfifo(folder / file_name)

    return damage


def flipped_bit(file_name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        raw = bytearray((folder / file_name).read_bytes())
        raw[-20] ^= 0x01
        (folder / file_name).write_bytes(raw)

    return damage


def rank_0(folder: Path) -> None:
    tensors(lambda arrays: arrays.update({LN_F: np.zeros(1, np.float32)}))(folder)
    entry(LN_F, shape=[])(folder)


def own_head_in_a_shard(folder: Path) -> None:
    """Tied weights, and in a file other than the embedding's a head that is not them."""
    head = random_tensors(MQA)[WTE] + 1
    write_safetensors(folder / "model-head.safetensors", {"lm_head.weight": head})
    listed("lm_head.weight", "model-head.safetensors")(folder)
    index(lambda fields: fields["metadata"].pop("total_size"))(folder)


def many_tensors(count: int, key: bytes, length: int = 0) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        item = b'"t%d":{"dtype":"F16","shape":[0],' + key + b":[0,0]}"
        text = b"{" + b",".join([item % i for i in range(count)]) + b"}"
        join_file(folder / FILE, text.ljust(length), b"")

    return damage


def header_of(item: bytes, count: int) -> Callable[[Path], object]:
    return header_text(lambda _: b"{" + b",".join([item % i for i in range(count)]) + b"}")


def added(name: str) -> Callable[[Path], object]:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return header(lambda fields: fields.update({name: empty}))


def twice(same: bool) -> Callable[[Path], object]:
    def change(text: bytes) -> bytes:
        fields = json.loads(text)
        item = fields[LN_F] if same else fields[LN_F] | {"data_offsets": [0, 48]}
        return text[:-1] + b"," + json.dumps({LN_F: item}).encode()[1:]

    return header_text(change)


def santacoder(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if "c_attn.weight" in name]:
        fused = arrays.pop(name)
        arrays[name.replace("c_attn", "q_attn")] = fused[:12]
        arrays[name.replace("c_attn", "kv_attn")] = fused[12:]


MHA = ModelConfig(**{**MQA.__dict__, "multi_query": False})


def mha_weights(folder: Path) -> None:
    write_safetensors(folder / FILE, random_tensors(MHA))


NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000

CASES = [
    Case("01-empty-file", content(b""), (FILE, "empty file", "0 of at least 8 bytes")),
    Case("01-seven-bytes", content(b"\x10" + bytes(6)), (FILE, "too short: 7 of at least 8")),
    Case("02-prefix-2-to-63", prefix(1 << 63), (FILE, str(1 << 63), "limit is 100000000")),
    Case("02-prefix-over-limit", prefix(100_000_001), (FILE, "100000001", "limit is 100000000")),
    Case("02-prefix-past-the-file", prefix(99_000_000), (FILE, "99000000 bytes, the file has")),
    Case("03-not-utf8", header_text(lambda t: t[:20] + b"\xff" + t[20:]), (FILE, "byte 20")),
    Case("03-not-json", header_text(lambda t: t.replace(b":", b"", 1)), (FILE, "header", "offset")),
    Case("03-an-array", header_text(lambda t: b"[" + t + b"]"), (FILE, "offset 0", "begin with")),
    Case("03-nested", header_text(lambda t: NESTED), (FILE, "header", "nested too deeply")),
    Case(
        "03-nan",
        header_text(lambda t: t.replace(b"[0, ", b"[NaN, ", 1)),
        (FILE, "line 1 column", "NaN is not JSON"),
    ),
    Case(
        "03-huge-integer",
        header_text(lambda t: t.replace(b"[0, ", b"[1" + b"0" * 5000 + b", ", 1)),
        (FILE, "header", "digits"),
    ),
    Case("04-identical-entry-twice", twice(same=True), (FILE, "duplicate key", LN_F)),
    Case("05-same-key-other-range", twice(same=False), (FILE, "duplicate key", LN_F)),
    Case("06-overlap", entry(LN_F, data_offsets=[0, 48]), (FILE, LN_F, "overlaps", "ends at 48")),
    Case(
        "06-hole",
        header(lambda fields: fields.pop(C_FC)),
        (FILE, "leaves a hole after", "which ends at"),
    ),
    Case(
        "06-trailing-bytes",
        lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes() + b"123"),
        (FILE, "3 bytes follow the data of"),
    ),
    Case(
        "06-last-byte-missing",
        lambda folder: os.truncate(folder / FILE, (folder / FILE).stat().st_size - 1),
        (FILE, "passes the end of the file", "cut off"),
    ),
    Case("06-begin-after-end", entry(LN_F, data_offsets=[96, 48]), (LN_F, "begin at 96", "at 48")),
    Case("06-negative-offset", entry(LN_F, data_offsets=[-48, 0]), (LN_F, "[-48, 0]")),
    Case("06-three-offsets", entry(LN_F, data_offsets=[0, 1, 2]), (LN_F, "[0, 1, 2]")),
    Case("06-length", entry(LN_F, shape=[13]), (LN_F, "are 48 bytes", "need 52")),
    Case("07-overflow", entry(LN_F, shape=[1 << 40, 1 << 40]), (LN_F, "overflows", str(1 << 40))),
    Case("07-overflow-by-many", entry(LN_F, shape=[2] * 5000), (LN_F, "overflows")),
    Case("07-float-size", entry(LN_F, shape=[12.0]), (LN_F, "[12.0]", "integers")),
    Case("07-negative-size", entry(LN_F, shape=[-12]), (LN_F, "[-12]", "integers")),
    Case("07-true-as-size", entry(LN_F, shape=[True, 12]), (LN_F, "[True, 12]", "integers")),
    Case(
        "07-rank-0",
        rank_0,
        (LN_F, "is [], expected [12]"),
    ),
    Case(
        "07-one-value",
        tensors(lambda t: t.update({LN_F: np.zeros((1,), np.float32)})),
        (LN_F, "is [1], expected [12]"),
    ),
    Case("07-shape-not-a-list", entry(LN_F, shape="12"), (LN_F, "'12'", "integers")),
    Case(
        "07-zero-dimension",
        tensors(lambda t: t.update({LN_F: np.zeros((0, 12), np.float32)})),
        (LN_F, "is [0, 12], expected [12]"),
    ),
    Case("08-f33", entry(LN_F, dtype="F33"), (LN_F, "'F33'", "F32, F16, BF16")),
    Case("08-f8", entry(LN_F, dtype="F8_E4M3"), (LN_F, "'F8_E4M3'", "F32, F16, BF16")),
    Case("08-f4", entry(LN_F, dtype="F4"), (LN_F, "'F4'", "F32, F16, BF16")),
    Case("08-f64", entry(LN_F, dtype="F64", shape=[6]), (LN_F, "'F64'", "F32, F16, BF16")),
    Case("08-i32", entry(LN_F, dtype="I32"), (LN_F, "'I32'", "F32, F16, BF16")),
    Case("08-number", entry(LN_F, dtype=32), (LN_F, "dtype 32", "F32, F16, BF16")),
    Case(
        "10-missing-and-unexpected",
        tensors(lambda t: (t.pop(LN_F), t.update(extra=np.zeros(3, np.float32)))),
        (f"missing {LN_F!r}, expected [12]", "unexpected 'extra' [3]", "2 problems"),
    ),
    Case(
        "10-missing-layer",
        tensors(lambda t: [t.pop(name) for name in list(t) if ".h.1." in name]),
        ("12 problems", "missing 'transformer.h.1.ln_1.weight'"),
    ),
    Case(
        "10-layer-too-many",
        tensors(lambda t: t.update({C_FC.replace(".1.", ".2."): t[C_FC]})),
        ("unexpected", ".h.2.", "n_layer is 2 in config.json"),
    ),
    Case(
        "10-with-and-without-prefix",
        tensors(lambda t: t.update({"ln_f.bias": t[LN_F]})),
        (LN_F, "is there twice", "'ln_f.bias'"),
    ),
    Case("10-layers-swapped", tensors(swapped_layers), (".h.0.", ".h.1.", "SHA-256"), "own"),
    Case("10-santacoder", tensors(santacoder), ("q_attn", "python -m conversion convert")),
    Case("11-transposed", tensors(transposed(C_FC)), (C_FC, "[12, 20], expected [20, 12]", "gpt2")),
    Case("11-transposed-square", tensors(transposed(SQUARE)), (SQUARE, "SHA-256"), "own"),
    Case(
        "12-multi-head-weights",
        mha_weights,
        ("c_attn", "[36, 12], expected [20, 12]", "multi-head", "multi_query is true"),
    ),
    Case(
        "12-multi-query-weights",
        config_of(MHA),
        ("c_attn", "[20, 12], expected [36, 12]", "multi-query", "multi_query is false"),
    ),
    Case(
        "13-tied-head-differs",
        tensors(lambda t: t.update({"lm_head.weight": t[WTE] + 1})),
        ("lm_head.weight", WTE, "differ in value", "tie_word_embeddings"),
    ),
    Case(
        "13-tied-head-differs-in-another-file",
        own_head_in_a_shard,
        ("lm_head.weight", WTE, "differ in value", "tie_word_embeddings"),
        "sharded",
    ),
    Case(
        "13-tied-head-differs-in-dtype",
        tensors(lambda t: t.update({"lm_head.weight": t[WTE].astype("float16")})),
        ("lm_head.weight", WTE, "differ in dtype", "float16"),
    ),
    Case(
        "13-tied-head-in-another-shape",
        tensors(lambda t: t.update({"lm_head.weight": t[WTE][:16]})),
        ("lm_head.weight", "[16, 12], expected [17, 12]", "vocab_size is 17"),
    ),
    Case("14-nan", tensors(value(WTE, np.nan)), (WTE, "2 NaN and 0 Inf among 204 values")),
    Case("14-inf", tensors(value(LN_F, -np.inf)), (LN_F, "0 NaN and 2 Inf among 12 values")),
    Case(
        "14-several",
        tensors(lambda t: (value(WTE, np.nan)(t), value(LN_F, np.inf)(t))),
        ("2 problems", WTE, LN_F),
    ),
    Case("15-flipped-bit", flipped_bit(FILE), ("SHA-256", "transformer."), "own"),
    Case(
        "15-flipped-bit-in-a-shard",
        flipped_bit("model-00002-of-00006.safetensors"),
        ("SHA-256", "transformer."),
        "own-sharded",
    ),
    Case(
        "15-data-swapped",
        tensors(swapped("transformer.ln_f.weight", LN_F)),
        ("2 problems", "transformer.ln_f.weight", LN_F, "SHA-256"),
        "own",
    ),
    Case(
        "16-git-lfs-pointer",
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 657\n"),
        (FILE, "git-LFS pointer", "git lfs pull"),
    ),
    Case("16-html", content(b"\n<!DOCTYPE html>\n<html>Log in</html>"), (FILE, "HTML")),
    Case("16-gzip", content(b"\x1f\x8b\x08\x00" + bytes(range(60))), (FILE, "gzip")),
    Case("16-zip-of-torch", content(b"PK\x03\x04" + bytes(99)), (FILE, "zip archive", "convert")),
    Case("16-pickle", content(b"\x80\x04\x95\x10" + bytes(60)), (FILE, "Python pickle", "convert")),
    Case("16-numpy", content(b"\x93NUMPY\x01\x00" + bytes(60)), (FILE, "NumPy array")),
    Case("16-gguf", content(b"GGUF\x03" + bytes(60)), (FILE, "GGUF")),
    Case("16-json", content(b'{"weight_map": {"a": "b"}}'), (FILE, "JSON text")),
    Case("17-bin", only("pytorch_model.bin"), ("pytorch_model.bin", "not opened", "convert SRC")),
    Case("17-pt", only("model.pt"), ("model.pt", "not opened", "convert SRC DST")),
    Case("17-pkl", only("model.pkl"), ("model.pkl", "not opened", "convert SRC DST")),
    Case("17-npy", only("weights.npy"), ("weights.npy", "not opened", "convert SRC DST")),
    Case("17-joblib", only("m.joblib"), ("m.joblib", "not opened", "convert SRC DST")),
    Case("17-no-weights", lambda folder: (folder / FILE).unlink(), (FILE, INDEX, "no weights")),
    Case(
        "17-weights-of-another-name",
        lambda folder: (folder / FILE).rename(folder / "weights.safetensors"),
        (FILE, INDEX, "weights.safetensors"),
    ),
    Case(
        "18-missing-shard",
        lambda folder: (folder / "model-00002-of-00006.safetensors").unlink(),
        (INDEX, "'model-00002-of-00006.safetensors' is missing", "transformer."),
        "sharded",
    ),
    Case(
        "18-parent-folder",
        listed(WTE, "../outside.safetensors"),
        (INDEX, WTE, "'../outside.safetensors'"),
        "sharded",
    ),
    Case("18-absolute", listed(WTE, "/x.safetensors"), (INDEX, WTE, "'/x.safet"), "sharded"),
    Case("18-backslash", listed(WTE, "..\\x.safetensors"), (INDEX, WTE, "x.safet"), "sharded"),
    Case("18-folder", listed(WTE, "sub/x.safetensors"), (INDEX, WTE, "'sub/x"), "sharded"),
    Case("18-pickle-listed", listed(WTE, "model.bin"), (INDEX, WTE, "'model.bin'"), "sharded"),
    Case("18-not-a-name", listed(WTE, 7), (INDEX, WTE, "7"), "sharded"),
    Case("18-two-shards", in_two_shards, (INDEX, "is in two shards", "00001-of"), "sharded"),
    Case(
        "18-listed-elsewhere",
        listed(WTE, "model-00002-of-00006.safetensors"),
        (INDEX, WTE, "that shard does not hold it"),
        "sharded",
    ),
    Case(
        "18-not-listed",
        index(lambda fields: fields["weight_map"].pop(LN_F)),
        (INDEX, LN_F, "weight_map does not list"),
        "sharded",
    ),
    Case(
        "18-total-size",
        index(lambda fields: fields["metadata"].update(total_size=1)),
        (INDEX, "total_size is 1", "hold 9104 bytes"),
        "sharded",
    ),
    Case(
        "18-weight-map",
        index(lambda fields: fields.update(weight_map=[1])),
        (INDEX, "weight_map is [1]"),
        "sharded",
    ),
    Case(
        "18-shard-damaged",
        lambda folder: (folder / "model-00003-of-00006.safetensors").write_bytes(b""),
        (INDEX, "model-00003-of-00006.safetensors", "empty file"),
        "sharded",
    ),
    Case(
        "18-both",
        lambda folder: write_safetensors(folder / FILE, random_tensors(MQA)),
        (FILE, INDEX, "holds both"),
        "sharded",
    ),
    Case("19-empty-name", added(""), (FILE, "0 characters")),
    Case("19-slash", added("a/b"), (FILE, "'a/b'", "path separator")),
    Case("19-dot-dot", added("..a"), (FILE, "'..a'", "'..'")),
    Case("19-nul", added("a\0b"), (FILE, "not printable ASCII")),
    Case("19-a-megabyte", added("a" * 1_000_000), (FILE, "1000000 characters", "1 to 512")),
    Case(
        "19-look-alike", renamed(WTE, "transformer.wte.w\u0435ight"), (FILE, "not printable ASCII")
    ),
    Case(
        "20-99-MB-of-a-million-tensors",
        many_tensors(1_000_000, b'"data_offsets"', length=99_000_000),
        (FILE, "7999999 colons and commas", "more than 100000 tensors need"),
    ),
    Case(
        "20-tensors-one-too-many",
        many_tensors(100_001, b'"data\\u005foffsets"'),
        (FILE, "100001 tensors, expected at most 100000"),
    ),
    Case("20-numbers-for-entries", header_of(b'"%d":0', 2_000_000), (FILE, "3999999 colons")),
    Case(
        "20-numbers-up-to-the-bound",
        header_of(b'"%d":0', 800_000),
        (FILE, "800000 tensors, expected at most 100000"),
    ),
    Case(
        "20-nothing-but-lists",
        header_text(lambda t: b'{"a":[' + b"[]," * 30_000_000 + b"0]}"),
        (FILE, "30000001 colons and commas"),
    ),
    Case(
        "20-a-name-of-90-megabytes-before-nan",
        header_text(lambda t: b'{"' + b"a" * 90_000_000 + b'": NaN}'),
        (FILE, "line 1 column 90000006", "NaN is not JSON"),
    ),
    Case("21-fifo", instead(os.mkfifo), (FILE, "a FIFO")),
    Case("21-directory", instead(Path.mkdir), (FILE, "a directory")),
    Case("21-device", instead(lambda p: p.symlink_to("/dev/zero")), (FILE, "a character device")),
    Case("21-dangling-link", instead(lambda p: p.symlink_to("gone")), (FILE, "a dangling link")),
    Case("21-link-loop", instead(lambda p: p.symlink_to(p.name)), (FILE, "symbolic links")),
    Case(
        "21-index-is-a-fifo",
        lambda folder: ((folder / INDEX).unlink(), os.mkfifo(folder / INDEX)),
        (INDEX, "a FIFO"),
        "sharded",
    ),
    Case("22-newer-format", manifest(lambda m: m.update(format=2)), ("format is 2", "upgr"), "own"),
    Case("22-older-format", manifest(lambda m: m.update(format=0)), ("format is 0", "1"), "own"),
    Case("22-no-format", manifest(lambda m: m.pop("format")), ("format is None",), "own"),
    Case(
        "22-other-config",
        lambda folder: edit_json(folder / "config.json", resid_pdrop=0.5),
        ("config.json is not the file that", MANIFEST),
        "own",
    ),
    Case(
        "22-other-index",
        index(lambda fields: fields["metadata"].update(note="edited")),
        (INDEX, "is not the file that", MANIFEST),
        "own-sharded",
    ),
    Case(
        "22-config-not-listed",
        manifest(lambda m: m["files"].pop("config.json")),
        (MANIFEST, "does not list config.json"),
        "own",
    ),
    Case(
        "22-listed-file-is-gone",
        lambda folder: (folder / "tokenizer.json").unlink(),
        (MANIFEST, "lists tokenizer.json", "no such file"),
        "own",
    ),
    Case(
        "22-other-tokenizer",
        lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'),
        ("tokenizer.json is not the file that",),
        "own",
    ),
    Case(
        "22-escaping-file",
        manifest(lambda m: m["files"].update({"../config.json": "0"})),
        (MANIFEST, "'../config.json'", "plain file name"),
        "own",
    ),
    Case(
        "22-tensor-not-listed",
        manifest(lambda m: m["tensors"].pop(WTE)),
        (WTE, "in the weights but not in", MANIFEST),
        "own",
    ),
    Case(
        "22-tensor-listed-but-absent",
        manifest(lambda m: m["tensors"].update(ghost=m["tensors"][WTE])),
        ("'ghost'", MANIFEST, "not in the weights"),
        "own",
    ),
    Case(
        "22-head-beside-tied-weights-of-ours",
        tensors(lambda t: t.update({"lm_head.weight": t[WTE]})),
        ("'lm_head.weight'", "not in", MANIFEST),
        "own",
    ),
    Case(
        "22-other-dtype",
        tensors(lambda t: t.update({WTE: t[WTE].astype("float16")})),
        (WTE, "F16 [17, 12]", "F32 [17, 12]"),
        "own",
    ),
    Case(
        "22-other-weights",
        tensors(lambda t: t.update({WTE: t[WTE] + 1})),
        (WTE, "its data is not what", MANIFEST),
        "own",
    ),
    Case(
        "22-manifest-not-json",
        lambda folder: (folder / MANIFEST).write_text("{"),
        (MANIFEST, "line 1 column 2", "not valid JSON"),
        "own",
    ),
    Case(
        "22-manifest-of-other-shape",
        manifest(lambda m: m.update(tensors=[])),
        (MANIFEST, "tensors is []"),
        "own",
    ),
    Case(
        "22-manifest-entry",
        manifest(lambda m: m["tensors"][WTE].pop("sha256")),
        (MANIFEST, WTE, "expected sha256, shape and dtype"),
        "own",
    ),
    Case(
        "22-half-written",
        lambda folder: [
            path.unlink() for path in folder.iterdir() if path.name not in ("config.json", "x")
        ],
        (FILE, "no weights"),
        "own",
    ),
]


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One valid checkpoint of each kind; tests damage copies."""
    root = tmp_path_factory.mktemp("valid")
    write_plain(root / "plain", MQA, random_tensors(MQA))
    params = params_from_hf(random_tensors(MQA), MQA)
    tokenizer = root / "tokenizer.json"
    tokenizer.write_text("{}")
    save_checkpoint(root / "own", MQA, params, tokenizer_file=tokenizer)
    save_checkpoint(root / "own-sharded", MQA, params, max_shard_bytes=2000)
    shutil.copytree(root / "own-sharded", root / "sharded")
    (root / "sharded" / MANIFEST).unlink()
    return root


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Turn a test that waits for a file for ever into a failure."""

    def fail(*_: object) -> None:
        raise AssertionError("still waiting after a minute")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def copy(valid: Path, base: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(valid / base, tmp_path / "model"))


def test_case_ids_are_unique_and_cover_the_list() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    tested_apart = {9, 23, 24}
    assert {int(name[:2]) for name in ids} | tested_apart == set(range(1, 25))


@pytest.mark.parametrize("base", ["plain", "own", "sharded", "own-sharded"])
def test_undamaged_checkpoints_load(valid: Path, tmp_path: Path, base: str) -> None:
    """Control of all cases: it is the damage that is refused."""
    assert load_checkpoint(copy(valid, base, tmp_path))[0] == MQA


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_damage_is_one_clear_error(valid: Path, tmp_path: Path, case: Case) -> None:
    folder = copy(valid, case.base, tmp_path)
    case.damage(folder)
    before = snapshot(tmp_path)
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    seconds = time.process_time() - start
    message = str(caught.value)
    assert "model" in message
    for word in case.words:
        assert word in message
    assert len(message) < 10_000
    assert snapshot(tmp_path) == before
    assert seconds <= CPU_SECONDS


def test_09_bfloat16_loads(tmp_path: Path) -> None:
    write_plain(tmp_path / "model", MQA, random_tensors(MQA, "bfloat16"))
    assert load_checkpoint(tmp_path / "model")[1]["wte"]["weight"].dtype == "bfloat16"


@pytest.mark.parametrize(
    "change",
    [transposed(SQUARE), swapped_layers, swapped("transformer.ln_f.weight", LN_F)],
    ids=["11-transposed-square", "10-layers-swapped", "15-data-swapped"],
)
def test_without_a_manifest_equal_shapes_cannot_be_told_apart(
    valid: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object]
) -> None:
    """A limit, on record: only the manifest finds these, so a file of others is trusted."""
    folder = copy(valid, "plain", tmp_path)
    tensors(change)(folder)
    load_checkpoint(folder)


@pytest.mark.parametrize(
    ("number", "message"),
    [(0.0, r"'transformer\.wte\.weight' is all zeros"), (1e-40, "holds 204 subnormal values")],
    ids=["14-all-zero", "14-subnormal"],
)
def test_14_suspicious_weights_are_warned_of(
    valid: Path, tmp_path: Path, number: float, message: str
) -> None:
    folder = copy(valid, "plain", tmp_path)
    tensors(lambda arrays: arrays[WTE].fill(number))(folder)
    with pytest.warns(UserWarning, match=message):
        load_checkpoint(folder)


def test_14_float16_subnormals_are_ordinary_weights(tmp_path: Path) -> None:
    arrays = random_tensors(MQA, "float16")
    arrays[WTE].fill(1e-5)
    write_plain(tmp_path / "model", MQA, arrays)
    load_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("dtype", "number", "wider"),
    [
        ("float16", 7e4, "float32 or bfloat16"),
        ("bfloat16", float(np.finfo(np.float32).max), "float32"),
    ],
)
def test_14_a_cast_that_overflows_is_refused_by_name(
    valid: Path, tmp_path: Path, dtype: str, number: float, wider: str
) -> None:
    folder = copy(valid, "plain", tmp_path)
    tensors(value(WTE, number))(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, dtype=dtype)
    expected = f"{WTE!r}: 2 values are too large for {dtype}; ask for {wider}; "
    assert expected in str(caught.value)
    load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent", "no such folder"), ("model/model.safetensors", "a file, expected the folder")],
)
def test_21_the_path_itself_is_checked(valid: Path, tmp_path: Path, name: str, words: str) -> None:
    copy(valid, "plain", tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / name)


def test_21_a_file_without_permission_is_named(
    valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(valid, "plain", tmp_path)
    (folder / FILE).chmod(0)
    if os.access(folder / FILE, os.R_OK):  # the superuser reads everything
        inner = Path.open

        def refuse(self: Path, *arguments: Any) -> Any:
            if self.name == FILE:
                raise PermissionError(13, "Permission denied")
            return inner(self, *arguments)

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read \(Permission d"):
        load_checkpoint(folder)


def test_22_a_finished_checkpoint_loads_beside_a_half_written_one(
    valid: Path, tmp_path: Path
) -> None:
    folder = copy(valid, "own", tmp_path)
    partial = tmp_path / ".model.partial-1-00000000"
    shutil.copytree(folder, partial)
    (partial / MANIFEST).unlink()
    assert load_checkpoint(folder)[0] == MQA
    with pytest.raises(CheckpointError, match="left by a save that was interrupted"):
        load_checkpoint(partial)


def test_22_without_a_manifest_a_checkpoint_loads(valid: Path, tmp_path: Path) -> None:
    folder = copy(valid, "own", tmp_path)
    (folder / MANIFEST).unlink()
    assert load_checkpoint(folder)[0] == MQA


def test_23_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        params = params_from_hf(random_tensors(MQA), MQA)
        save_checkpoint(tmp_path / "saved", MQA, params)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("base", ["plain", "own"])
def test_24_a_thousand_truncations_are_a_thousand_refusals(
    valid: Path, tmp_path: Path, base: str
) -> None:
    folder = copy(valid, base, tmp_path)
    raw = (folder / FILE).read_bytes()
    offsets = np.unique(np.linspace(0, len(raw) - 1, 1000, dtype=int))
    assert len(offsets) == 1000
    for offset in reversed(offsets):
        os.truncate(folder / FILE, offset)
        with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
            load_checkpoint(folder)
        assert re.search("empty|too short|cut off", str(caught.value)), offset


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_a_header_is_refused_or_harmless(
    valid: Path, tmp_path: Path, seed: int
) -> None:
    """Whatever the bytes, only our error comes out, and what passes has the exact tensors."""
    folder = copy(valid, "plain", tmp_path)
    good = (folder / FILE).read_bytes()
    length = int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(100):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(0, 8 + length)] = rng.integers(0, 256)
        (folder / FILE).write_bytes(raw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_checkpoint(folder)
        except CheckpointError as exc:
            assert FILE in str(exc) or "transformer." in str(exc)
            refused += 1
        else:
            found = {name: info.shape for name, info in read_header(folder / FILE).tensors.items()}
            assert found == tensor_shapes(MQA)
    assert refused > 80


def test_a_wrong_number_of_heads_is_not_blamed_on_another_field() -> None:
    """With n_head 2 for 4, c_attn.bias is [48] for [64], and n_inner happened to be 64."""
    fields = {"vocab_size": 9, "n_positions": 8, "n_embd": 32, "n_layer": 1, "n_inner": 64}
    config = ModelConfig(n_head=2, **fields)
    shapes = tensor_shapes(ModelConfig(n_head=4, **fields))
    tensors = {name: TensorInfo("F32", shape, 0, 0) for name, shape in shapes.items()}
    problems = match_tensors(tensors, config).problems
    assert len(problems) == 2
    assert all("n_head is 2" in problem and "n_inner" not in problem for problem in problems)
