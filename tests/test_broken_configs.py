"""Every kind of damaged or foreign config.json gives one error, or a warning, that names the field.

The numbers continue those of test_broken_checkpoints: 25 the file, 26 the architecture, 27-30 the
values, 31 code in the folder, 32 unknown fields and special ids. Loading goes through
`load_checkpoint`, beside valid weights.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoint_files import MQA, edit_json, random_tensors, snapshot, write_plain

from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, ConfigError

CONFIG = "config.json"
CPU_SECONDS = 5


class Case(NamedTuple):
    """One fault: how it changes config.json, and words the error or warning must contain."""

    id: str
    damage: Callable[[Path], object]
    words: tuple[str, ...]
    error: type[Exception] = ConfigError


def fields(**changes: Any) -> Callable[[Path], object]:
    return lambda path: edit_json(path, **changes)


def without(name: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        loaded = json.loads(path.read_text())
        del loaded[name]
        path.write_text(json.dumps(loaded))

    return damage


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change(path.read_text()))


def sparse(path: Path) -> None:
    os.truncate(path, 100_000_000)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def refused(number: str, field: str, value: Any, *words: str) -> Case:
    """A case that sets one field; the message must hold the field, the value and `words`."""
    shown = repr(value) if isinstance(value, str | list) else str(value)
    return Case(number, fields(**{field: value}), (field, shown, *words))


INTEGER = "expected an integer from 1"

CASES = [
    Case("25-missing", Path.unlink, ("no such file", "expected a file")),
    Case("25-empty", raw(b""), ("line 1 column 1",)),
    Case("25-not-json", raw(b'{\n "a": 1,\n}'), ("line", "column", "not valid JSON")),
    Case("25-truncated", text(lambda t: t[:30]), ("line 1 column", "not valid JSON")),
    Case("25-comment", raw(b'{\n  // a remark\n  "a": 1}'), ("line 2 column 3", "not valid JSON")),
    Case("25-array", raw(b"[1]"), ("line 1 column 1", "JSON list, expected an object")),
    Case(
        "25-duplicate-key",
        raw(b'{"n_embd": 12,\n "n_embd": 24}'),
        ("duplicate key 'n_embd' in one object",),
    ),
    Case(
        "25-nested-duplicate",
        raw(b'{"a": {"b": 1, "b": 1}}'),
        ("duplicate key 'b' in one object",),
    ),
    Case(
        "25-duplicate-key-that-is-also-a-value",
        raw('{"é": 1, "é": 2,\n "x": "é"}'.encode()),
        ("config.json: duplicate key 'é' in one object; keep one",),
    ),
    Case("25-hundred-megabytes", sparse, ("100000000 bytes, expected at most", "not read")),
    Case("25-byte-order-mark", raw(b"\xef\xbb\xbf{}"), ("line 1 column 1", "byte order mark")),
    Case("25-not-utf8", raw(b'{"a": "\xe9"}'), ("byte 7", "not UTF-8 (0xe9)")),
    Case("25-utf16", raw('{"a": 1}'.encode("utf-16")), ("byte 0", "not UTF-8")),
    Case("25-nan", raw(b'{"NaN": 1,\n "b": NaN}'), ("line 2 column 7", "NaN is not JSON")),
    Case("25-infinity", raw(b'{"a": -Infinity}'), ("line 1 column 7", "-Infinity is not JSON")),
    Case("25-huge-integer", raw(b'{"a": 1' + b"0" * 5000 + b"}"), ("thousands of digits",)),
    Case("25-deeply-nested", raw(b"[" * 100_000), ("nested too deeply",)),
    Case("25-nested-values", raw(b'{"a":' * 65 + b"1" + b"}" * 65), ("nested too deeply", "64")),
    Case("25-fifo", fifo, ("a FIFO",)),
    Case(
        "26-no-model-type", without("model_type"), ("model_type is missing", "gpt_bigcode or gpt2")
    ),
    refused("26-starcoder2", "model_type", "starcoder2", "StarCoder2", "gpt_bigcode or gpt2"),
    refused("26-llama", "model_type", "llama", "another architecture", "gpt_bigcode or gpt2"),
    refused("26-unknown", "model_type", "mystery", "another architecture", "gpt_bigcode or gpt2"),
    refused("26-number", "model_type", 2, "another architecture", "gpt_bigcode or gpt2"),
    Case(
        "26-contradiction",
        fields(architectures=["LlamaForCausalLM"]),
        ("architectures", "'LlamaForCausalLM'", "'gpt_bigcode'", "GPTBigCodeForCausalLM"),
    ),
    Case(
        "26-santacoder",
        fields(architectures=["GPT2LMHeadCustomModel"], model_type="gpt2"),
        ("architectures", "SantaCoder", "python -m conversion convert"),
    ),
    Case("26-architectures-text", fields(architectures="x"), ("architectures is 'x'", "a list")),
    Case("27-not-divisible", fields(n_head=5), ("n_embd is 12", "n_head 5", "must divide")),
    refused("27-zero", "n_layer", 0, INTEGER),
    refused("27-negative", "n_positions", -8, INTEGER),
    refused("27-string", "n_embd", "12", INTEGER),
    refused("27-float", "n_embd", 12.0, INTEGER),
    refused("27-true", "n_head", True, INTEGER),
    refused("27-null", "vocab_size", None, INTEGER),
    refused("27-list", "n_layer", [2], INTEGER),
    refused("27-billion", "n_embd", 10**9, INTEGER, "to 131072"),
    refused("27-billion-layers", "n_layer", 10**9, INTEGER, "to 4096"),
    refused("27-billion-rows", "vocab_size", 10**9, INTEGER, "to 16777216"),
    refused("28-multi-query-text", "multi_query", "true", "expected true or false"),
    refused("28-multi-query-null", "multi_query", None, "expected true or false"),
    Case(
        "28-multi-query-false",
        fields(multi_query=False),
        ("c_attn", "[20, 12], expected [36, 12]", "multi_query is false"),
        CheckpointError,
    ),
    Case(
        "28-n-inner-null",
        fields(n_inner=None),
        ("c_fc.weight", "[20, 12], expected [48, 12]", "n_inner is 48", "weights say 20"),
        CheckpointError,
    ),
    Case(
        "28-n-positions",
        fields(n_positions=16),
        ("wpe.weight", "n_positions is 16 in config.json, the weights say 8"),
        CheckpointError,
    ),
    Case(
        "28-vocab-size",
        fields(vocab_size=18),
        ("wte.weight", "vocab_size is 18 in config.json, the weights say 17"),
        CheckpointError,
    ),
    Case(
        "28-n-layer",
        fields(n_layer=1),
        ("12 problems", "unexpected", ".h.1.", "n_layer is 1 in config.json"),
        CheckpointError,
    ),
    Case(
        "28-n-embd",
        fields(n_embd=24),
        ("n_embd is 24 in config.json, the weights say 12",),
        CheckpointError,
    ),
    Case("28-aliases", fields(hidden_size=24), ("n_embd is 12", "alias hidden_size 24")),
    refused("29-unknown", "activation_function", "silu", "gelu_pytorch_tanh, gelu_new"),
    refused("29-null", "activation_function", None, "expected one of"),
    refused("29-list", "activation_function", ["gelu"], "expected one of"),
    refused("30-epsilon-zero", "layer_norm_epsilon", 0, "above 0"),
    refused("30-epsilon-negative", "layer_norm_epsilon", -1e-5, "above 0"),
    refused("30-epsilon-text", "layer_norm_epsilon", "1e-5", "above 0"),
    Case("30-epsilon-infinite", text(lambda t: t.replace("1e-05", "1e999")), ("inf", "below 1")),
    refused("30-scale-text", "scale_attn_weights", "no", "true or false"),
    Case(
        "30-inverse-layer",
        fields(scale_attn_by_inverse_layer_idx=True),
        ("scale_attn_by_inverse_layer_idx is true", "only model_type gpt2"),
    ),
    Case("30-cross-attention", fields(add_cross_attention=True), ("add_cross_attention is true",)),
    Case("30-rotary", fields(use_rotary_embeddings=True), ("use_rotary_embeddings is true",)),
    Case("30-no-positions", fields(use_position_embeddings=False), ("use_position_embeddings",)),
    Case("30-attention-type", fields(attention_type=3), ("attention_type is 3", "2 with true")),
    refused("30-dropout", "attn_pdrop", 1.5, "from 0 up to"),
    refused("32-bos", "bos_token_id", 17, "below vocab_size 17"),
    refused("32-eos", "eos_token_id", 50256, "below vocab_size 17"),
    Case("32-eos-list", fields(eos_token_id=[0, 99]), ("eos_token_id is 99", "vocab_size 17")),
    refused("32-pad", "pad_token_id", -1, "below vocab_size 17"),
    refused("32-pad-true", "pad_token_id", True, "below vocab_size 17"),
    refused("32-eos-text", "eos_token_id", "0", "below vocab_size 17"),
    Case("32-a-megabyte", fields(model_type="x" * 1_000_000), ("another architecture",)),
]

WARNINGS = [
    Case("31-auto-map", fields(auto_map={"AutoModel": "x.Y"}), ("auto_map", "code is never run")),
    Case(
        "31-custom-pipelines",
        fields(custom_pipelines={"a": "b"}),
        ("custom_pipelines", "code is never run"),
    ),
    Case(
        "31-trust-remote-code",
        fields(trust_remote_code=True),
        ("trust_remote_code", "code is never run"),
    ),
    Case("32-misspelt", fields(n_emdb=12), ("unknown field 'n_emdb'", "did you mean 'n_embd'?")),
    Case("32-foreign", fields(qqqq=1), ("unknown field 'qqqq' is ignored",)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_plain(tmp_path / "model", MQA, random_tensors(MQA))
    return tmp_path / "model"


def test_case_ids_are_unique_and_cover_the_list() -> None:
    ids = [case.id for case in CASES + WARNINGS]
    assert len(set(ids)) == len(ids)
    assert {int(name[:2]) for name in ids} == set(range(25, 33))


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_damage_is_one_clear_error(folder: Path, case: Case) -> None:
    case.damage(folder / CONFIG)
    before = snapshot(folder)
    start = time.process_time()
    with pytest.raises(case.error) as caught:
        load_checkpoint(folder)
    seconds = time.process_time() - start
    message = str(caught.value)
    assert type(caught.value) is case.error
    for word in ("config.json" if case.error is ConfigError else "model", *case.words):
        assert word in message
    assert len(message) < 10_000
    assert snapshot(folder) == before
    assert seconds <= CPU_SECONDS


@pytest.mark.parametrize("case", WARNINGS, ids=[case.id for case in WARNINGS])
def test_what_changes_no_number_is_warned_of(folder: Path, case: Case) -> None:
    case.damage(folder / CONFIG)
    with pytest.warns(UserWarning) as caught:
        assert load_checkpoint(folder)[0] == MQA
    (warning,) = caught
    for word in (str(folder / CONFIG), *case.words):
        assert word in str(warning.message)


def test_many_unknown_fields_are_warned_of_in_bounded_time(folder: Path) -> None:
    """Looking for the nearest name of each of 50,000 fields would take minutes."""
    edit_json(folder / CONFIG, **{f"n_embd_{i}": 1 for i in range(50_000)})
    start = time.process_time()
    with pytest.warns(UserWarning) as caught:
        load_checkpoint(folder)
    assert len(caught) == 21
    assert "49980 more unknown fields are ignored" in str(caught[-1].message)
    assert time.process_time() - start <= CPU_SECONDS


HONOURED = {
    "28-multi-query-missing": (without("multi_query"), {}),
    "28-n-inner-null": (fields(n_inner=None, n_embd=5, n_head=1), {"n_inner": 20}),
    "29-gelu": (fields(activation_function="gelu"), {"activation_function": "gelu"}),
    "29-gelu-new": (fields(activation_function="gelu_new"), {"activation_function": "gelu_new"}),
    "29-gelu-fast": (fields(activation_function="gelu_fast"), {"activation_function": "gelu_fast"}),
    "30-epsilon": (fields(layer_norm_epsilon=1e-6), {"layer_norm_epsilon": 1e-6}),
    "30-no-scale": (fields(scale_attn_weights=False), {"scale_attn_weights": False}),
    "30-softmax-in-fp32-off": (fields(attention_softmax_in_fp32=False), {}),
    "30-inverse-layer-gpt2": (
        fields(
            model_type="gpt2",
            multi_query=False,
            architectures=["GPT2LMHeadModel"],
            scale_attn_by_inverse_layer_idx=True,
        ),
        {"scale_attn_by_inverse_layer_idx": True, "multi_query": False},
    ),
    "30-no-cross-attention": (fields(add_cross_attention=False), {}),
    "30-attention-type": (fields(attention_type=2), {}),
    "31-no-code": (fields(auto_map=None, trust_remote_code=False), {}),
}


@pytest.mark.parametrize("case", HONOURED)
def test_what_is_valid_is_honoured_without_a_warning(folder: Path, case: str) -> None:
    """Control of the cases above: a neighbour of the refused value passes, and takes effect."""
    damage, expected = HONOURED[case]
    damage(folder / CONFIG)
    config = ModelConfig.from_file(folder / CONFIG)
    for name, value in expected.items():
        assert getattr(config, name) == value
