"""Every source of `convert`, built from tensors that are known, must give those tensors back."""

import dataclasses
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import MQA, edit_json, random_tensors, snapshot, write_json, write_plain
from tokenizer_files import write_tokenizer

from conversion import __main__ as command
from conversion import layouts
from conversion.convert import convert
from conversion.download import resolve_source
from jaxcoder import Generator, reference
from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.hf_names import params_from_hf, params_to_hf
from jaxcoder.safetensors_file import read_header, read_tensor

Tensors = dict[str, np.ndarray]

MHA = dataclasses.replace(MQA, multi_query=False)
GPT2 = dataclasses.replace(MHA, model_type="gpt2")
UNTIED = dataclasses.replace(MQA, tie_word_embeddings=False)
FLOATS = ("float32", "bfloat16", "float16")
CONV1D = ("attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def with_clutter(tensors: Tensors, config: ModelConfig) -> Tensors:
    """Add what old files hold beside the weights: mask buffers, and the tied head once more."""
    size = config.n_positions
    clutter = {}
    for layer in range(config.n_layer):
        mask = np.tril(np.ones((1, 1, size, size), np.uint8))
        clutter[f"transformer.h.{layer}.attn.bias"] = mask
        clutter[f"transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    if config.tie_word_embeddings:
        clutter["lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors | clutter


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): array for name, array in tensors.items()}


def with_separate_query(tensors: Tensors, *, conv1d: bool) -> Tensors:
    """Multi-query tensors with c_attn cut in two; `conv1d` stores each matrix [in, out]."""
    result = {}
    for name, array in tensors.items():
        if ".c_attn." in name:
            parts = {".q_attn.": array[: MQA.n_embd], ".kv_attn.": array[MQA.n_embd :]}
            for part, rows in parts.items():
                result[name.replace(".c_attn.", part)] = rows.T if conv1d else rows
        else:
            result[name] = array.T if conv1d and name.endswith(CONV1D) else array
    return {name: np.ascontiguousarray(array) for name, array in result.items()}


def santacoder_fields(head_type: str | None) -> dict[str, Any]:
    fields = MQA.to_hf_config() | {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadCustomModel"],
        "attention_head_type": head_type,
        "activation_function": "gelu_fast",
        "scale_attn_by_inverse_layer_idx": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_gpt2_mq.GPT2LMHeadCustomModel"},
    }
    del fields["multi_query"]
    return fields


SANTACODER = dataclasses.replace(MQA, activation_function="gelu_fast")
SANTACODER_MHA = dataclasses.replace(SANTACODER, multi_query=False)


def canonical_source(config: ModelConfig, dtype: str) -> tuple[dict[str, Any], Tensors]:
    return config.to_hf_config(), with_clutter(random_tensors(config, dtype), config)


def gpt2_source(dtype: str) -> tuple[dict[str, Any], Tensors]:
    fields, tensors = canonical_source(GPT2, dtype)
    return fields, without_prefix(tensors)


def early_source(dtype: str) -> tuple[dict[str, Any], Tensors]:
    tensors = with_separate_query(random_tensors(MQA, dtype), conv1d=False)
    return MQA.to_hf_config() | {"attention_type": 3}, with_clutter(tensors, MQA)


def santacoder_source(dtype: str) -> tuple[dict[str, Any], Tensors]:
    tensors = with_separate_query(random_tensors(SANTACODER, dtype), conv1d=True)
    return santacoder_fields("multiquery"), with_clutter(tensors, MQA)


def santacoder_mha_source(dtype: str) -> tuple[dict[str, Any], Tensors]:
    as_gpt2 = dataclasses.replace(SANTACODER_MHA, model_type="gpt2")
    params = params_from_hf(random_tensors(SANTACODER_MHA, dtype), SANTACODER_MHA)
    return santacoder_fields("multihead"), with_clutter(params_to_hf(params, as_gpt2), MHA)


# name -> (the config to expect, whose random tensors are to come out; the source of a dtype)
SOURCES: dict[str, tuple[ModelConfig, Callable[[str], tuple[dict[str, Any], Tensors]]]] = {
    "mqa": (MQA, lambda dtype: canonical_source(MQA, dtype)),
    "mha": (MHA, lambda dtype: canonical_source(MHA, dtype)),
    "untied": (UNTIED, lambda dtype: canonical_source(UNTIED, dtype)),
    "gpt2": (GPT2, gpt2_source),
    "early": (MQA, early_source),
    "santacoder": (SANTACODER, santacoder_source),
    "santacoder-multihead": (SANTACODER_MHA, santacoder_mha_source),
}


def write_source(folder: Path, fields: dict[str, Any], tensors: Tensors, container: str) -> Path:
    """Write config.json and the weights as "safetensors", "bin" or "sharded-bin"."""
    folder.mkdir()
    write_json(folder / "config.json", fields)
    if container == "safetensors":
        from safetensors.numpy import save_file  # ours writes weights alone, not masks

        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif container == "bin":
        save_torch(folder / "pytorch_model.bin", tensors)
    else:
        names = sorted(tensors)
        parts = [names[start::3] for start in range(3)]
        files = [f"pytorch_model-0000{i + 1}-of-00003.bin" for i in range(3)]
        for file, part in zip(files, parts, strict=True):
            save_torch(folder / file, {name: tensors[name] for name in part})
        listed = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": listed}
        write_json(folder / "pytorch_model.bin.index.json", index)
    return folder


def save_torch(path: Path, tensors: Mapping[str, Any]) -> None:
    import torch

    def tensor(array: np.ndarray) -> "torch.Tensor":
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    torch.save({name: tensor(array) for name, array in tensors.items()}, path)


def written(folder: Path) -> Tensors:
    """Every tensor in the one safetensors file of `folder`."""
    path = folder / "model.safetensors"
    return {name: read_tensor(path, name) for name in read_header(path).tensors}


def assert_same_bits(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


CASES = [
    (name, container, dtype)
    for name in SOURCES
    for container, dtypes in (
        ("safetensors", ("float32", "bfloat16")),
        ("bin", FLOATS),
        ("sharded-bin", ("float32",)),
    )
    for dtype in dtypes
]


@pytest.mark.parametrize(
    ("name", "container", "dtype"),
    [pytest.param(*case, marks=pytest.mark.parity) if "bin" in case[1] else case for case in CASES],
)
def test_source_gives_the_canonical_tensors_bit_for_bit(
    tmp_path: Path, name: str, container: str, dtype: str
) -> None:
    expected_config, make = SOURCES[name]
    source = write_source(tmp_path / "source", *make(dtype), container)
    before = snapshot(source)
    convert(source, tmp_path / "converted")
    assert snapshot(source) == before
    assert_same_bits(written(tmp_path / "converted"), random_tensors(expected_config, dtype))
    config, _ = load_checkpoint(tmp_path / "converted")
    assert config == expected_config


def test_swapped_key_and_value_are_seen() -> None:
    """Negative control of the test above: the same shapes, another order."""
    tensors = with_separate_query(random_tensors(MQA), conv1d=False)
    lazy = {
        name: layouts.LazyTensor(array.shape, lambda array=array: array)
        for name, array in tensors.items()
    }
    name = "transformer.h.0.attn.kv_attn.weight"
    key, value = np.split(tensors[name], 2)
    lazy[name] = layouts.LazyTensor(tensors[name].shape, lambda: np.concatenate([value, key]))
    layout = layouts.find_layout(MQA.to_hf_config(), lazy, source="test")
    got = {name: tensor.read() for name, tensor in layout.tensors.items()}
    with pytest.raises(AssertionError, match=r"h\.0\.attn\.c_attn\.weight"):
        assert_same_bits(got, random_tensors(MQA))


def test_santacoder_computes_what_it_did(tmp_path: Path) -> None:
    """Against the original attention, written out from separate projections of Conv1D."""
    fields, tensors = santacoder_source("float32")
    tokens = np.array([3, 1, 4, 1, 5, 9])
    source = write_source(tmp_path / "source", fields, tensors, "safetensors")
    convert(source, tmp_path / "converted")
    config = ModelConfig.from_file(tmp_path / "converted" / "config.json")
    got = reference.forward(written(tmp_path / "converted"), config, tokens).logits
    np.testing.assert_allclose(got, santacoder_logits(tensors, tokens), rtol=0, atol=1e-10)
    # Control: a square q_attn reads either way; only one is right.
    for name in tensors:
        if name.endswith("q_attn.weight"):
            tensors[name] = tensors[name].T
    assert np.abs(got - santacoder_logits(tensors, tokens)).max() > 1e-2


def santacoder_logits(tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    """Float64 logits [T, V] of the original model: one head at a time, one query at a time."""

    def get(name: str) -> np.ndarray:
        return tensors[f"transformer.{name}"].astype(np.float64)

    def conv1d(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get(f"{name}.weight") + get(f"{name}.bias")

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(x.var(-1, keepdims=True) + MQA.layer_norm_epsilon)
        return centred / spread * get(f"{name}.weight") + get(f"{name}.bias")

    x = get("wte.weight")[tokens] + get("wpe.weight")[: len(tokens)]
    size = MQA.head_dim
    for layer in range(MQA.n_layer):
        block = f"h.{layer}"
        normed = norm(x, f"{block}.ln_1")
        queries = conv1d(normed, f"{block}.attn.q_attn")
        keys_values = conv1d(normed, f"{block}.attn.kv_attn")
        keys, values = keys_values[:, :size], keys_values[:, size:]
        mixed = np.zeros_like(queries)
        for start in range(0, MQA.n_embd, size):
            for t in range(len(tokens)):
                scores = keys[: t + 1] @ queries[t, start : start + size] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                mixed[t, start : start + size] = weights / weights.sum() @ values[: t + 1]
        x = x + conv1d(mixed, f"{block}.attn.c_proj")
        inner = conv1d(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        tanh = np.tanh(np.sqrt(2 / np.pi) * inner * (1 + 0.044715 * inner * inner))
        x = x + conv1d(0.5 * inner * (1 + tanh), f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ get("wte.weight").T


def test_multihead_santacoder_computes_what_it_did(tmp_path: Path) -> None:
    """Its c_attn is packed as GPT-2's, [q | k | v]; gpt_bigcode's goes head by head."""
    fields, tensors = santacoder_mha_source("float32")
    source = write_source(tmp_path / "source", fields, tensors, "safetensors")
    convert(source, tmp_path / "converted")
    converted = written(tmp_path / "converted")
    config = ModelConfig.from_file(tmp_path / "converted" / "config.json")
    assert config.model_type == "gpt_bigcode"
    tokens = np.array([3, 1, 4, 1, 5, 9])
    as_gpt2 = dataclasses.replace(config, model_type="gpt2")
    before = reference.forward(tensors, as_gpt2, tokens).logits
    after = reference.forward(converted, config, tokens).logits
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["mqa", "mha", "untied", "gpt2"])
def test_converted_bin_computes_what_transformers_does(tmp_path: Path, name: str) -> None:
    """From the state dict of a model of transformers to our float64 reference."""
    import torch
    import transformers

    config = SOURCES[name][0]
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config.to_hf_config()), attn_implementation="sdpa"
    ).eval()
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", json.loads(model.config.to_json_string(use_diff=False)))
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    convert(source, tmp_path / "converted")
    tokens = np.array([3, 1, 4, 1, 5, 9])
    with torch.inference_mode():
        expected = model.double()(torch.tensor(tokens[None])).logits[0].numpy()
    loaded = ModelConfig.from_file(tmp_path / "converted" / "config.json")
    got = reference.forward(written(tmp_path / "converted"), loaded, tokens).logits
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["mqa", "santacoder"])
def test_dtype_casts_each_tensor(tmp_path: Path, name: str, dtype: str) -> None:
    """Both by the loader, which reads "mqa", and by the reading of foreign layouts."""
    source = write_source(tmp_path / "source", *SOURCES[name][1]("float32"), "safetensors")
    convert(source, tmp_path / "converted", dtype=dtype)
    config = SOURCES[name][0]
    expected = {name: array.astype(dtype) for name, array in random_tensors(config).items()}
    assert_same_bits(written(tmp_path / "converted"), expected)
    fields = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (fields["dtype"], fields["torch_dtype"]) == (dtype, dtype)


def refused(source: Path, match: str, error: type[ValueError] = CheckpointError) -> None:
    """Convert must fail with a message that has `match`, and leave nothing beside the source."""
    names = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(error, match=match):
        convert(source, source.parent / "converted")
    assert sorted(path.name for path in source.parent.iterdir()) == names


def santacoder_changed(
    tmp_path: Path, change: Callable[[Tensors], Any], fields: dict[str, Any] | None = None
) -> Path:
    """A SantaCoder source in safetensors, after `change` of its tensors."""
    own_fields, tensors = santacoder_source("float32")
    change(tensors)
    return write_source(tmp_path / "source", fields or own_fields, tensors, "safetensors")


BLOCK = "transformer.h.1.attn."


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(f"{BLOCK}kv_attn.bias"), r"q_attn\.bias' has no kv_attn"),
        (lambda t: t.pop(f"{BLOCK}q_attn.weight"), r"kv_attn\.weight' has no q_attn"),
        (
            lambda t: t.update({f"{BLOCK}kv_attn.weight": np.zeros((11, 8), np.float32)}),
            r"\[12, 12\] and its kv_attn \[8, 11\] as \[out, in\], expected equal inputs",
        ),
        (
            lambda t: t.update({f"{BLOCK}kv_attn.weight": np.zeros(8, np.float32)}),
            r"kv_attn \[8\]",
        ),
        (
            lambda t: t.update({f"{BLOCK}kv_attn.weight": np.zeros((12, 24), np.float32)}),
            r"c_attn\.weight' is \[36, 12\], expected \[20, 12\]: that is multi-head",
        ),
        (lambda t: t.pop("transformer.ln_f.bias"), r"missing 'transformer\.ln_f\.bias'"),
        (
            lambda t: t.update({"transformer.wpe.weight": np.zeros((9, 12), np.float32)}),
            "n_positions is 8 in config.json, the weights say 9",
        ),
        (
            lambda t: t[f"{BLOCK}kv_attn.bias"].__setitem__(0, np.nan),
            r"c_attn\.bias' holds 1 NaN",
        ),
        (
            lambda t: t["transformer.wte.weight"].__setitem__((0, 0), 7.0),
            "differ in value, but tie_word_embeddings is true",
        ),
    ],
)
def test_damaged_santacoder_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    # The head is a copy here, so that a change of the embedding makes them differ.
    def change_with_own_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        change(tensors)

    refused(santacoder_changed(tmp_path, change_with_own_head), match)


def test_overflow_of_a_cast_is_refused(tmp_path: Path) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors["transformer.ln_f.bias"][0] = 1e6

    source = santacoder_changed(tmp_path, enlarge)
    with pytest.raises(CheckpointError, match=r"ln_f\.bias': 1 values are too large for float16"):
        convert(source, tmp_path / "converted", dtype="float16")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("head_type", [None, "grouped"])
def test_santacoder_without_a_known_attention_is_refused(
    tmp_path: Path, head_type: str | None
) -> None:
    source = santacoder_changed(tmp_path, lambda _: None, santacoder_fields(head_type))
    refused(source, f"attention_head_type is {head_type!r}.*'multiquery' or", ConfigError)


def test_config_that_the_loader_sends_here_is_converted(tmp_path: Path) -> None:
    """The loader's refusal of a "multiquery" gpt2 names this command, whatever the architecture."""
    fields = santacoder_fields("multiquery") | {"architectures": ["GPT2LMHeadModel"]}
    with pytest.raises(ConfigError, match="conversion convert"):
        ModelConfig.from_hf_config(fields)
    source = santacoder_changed(tmp_path, lambda _: None, fields)
    convert(source, tmp_path / "converted")
    assert_same_bits(written(tmp_path / "converted"), random_tensors(MQA))


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    write_plain(tmp_path / "source", MQA, random_tensors(MQA))
    edit_json(tmp_path / "source" / "config.json", model_type="starcoder2")
    refused(tmp_path / "source", "StarCoder2", ConfigError)


def test_different_head_of_a_tied_canonical_source_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(UNTIED)
    write_plain(tmp_path / "source", MQA, tensors)
    refused(tmp_path / "source", "differ in value, but tie_word_embeddings is true")


def test_manifest_of_a_source_is_held_to(tmp_path: Path) -> None:
    """A source that we wrote is checked by its hashes, as the loader does."""
    write_plain(tmp_path / "plain", MQA, random_tensors(MQA))
    convert(tmp_path / "plain", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    refused(tmp_path / "source", "SHA-256")


@pytest.mark.parametrize("is_file", [True, False])
def test_taken_destination_is_refused_before_reading(tmp_path: Path, is_file: bool) -> None:
    write_plain(tmp_path / "source", MQA, random_tensors(MQA))
    taken = tmp_path / "taken"
    if is_file:
        taken.write_text("mine")
    else:
        taken.mkdir()
        (taken / "mine").write_text("mine")
    # Control: the source is not even looked at; it would be refused for this.
    (tmp_path / "source" / "model.safetensors").write_bytes(b"damaged")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"taken: exists, .*nothing was written"):
        convert(tmp_path / "source", taken)
    assert snapshot(tmp_path) == before


def test_other_files_are_copied_and_the_generator_loads_it(tmp_path: Path) -> None:
    config = dataclasses.replace(MQA, vocab_size=300)
    tensors = with_separate_query(random_tensors(config), conv1d=False)
    source = write_source(tmp_path / "source", config.to_hf_config(), tensors, "safetensors")
    write_tokenizer(source)
    (source / "generation_config.json").write_text('{"eos_token_id": 0,\n"max_length": 77}')
    (source / "README.md").write_text("not ours to copy")
    destination = tmp_path / "new" / "converted"
    convert(source, destination)
    copied = ("generation_config.json", "tokenizer.json")
    for name in copied:
        assert (destination / name).read_bytes() == (source / name).read_bytes()
    manifest = json.loads((destination / "jaxcoder_manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(("config.json", *copied))
    names = {path.name for path in destination.iterdir()}
    assert names == {*manifest["files"], "model.safetensors", "jaxcoder_manifest.json"}
    assert [path.name for path in destination.parent.iterdir()] == ["converted"]
    generator = Generator.from_pretrained(str(destination), dtype="float32")
    assert len(generator.generate("def", max_new_tokens=2, temperature=1.0).tokens) <= 2


@pytest.mark.parametrize("content", ["[]", '{"a": NaN}'])
def test_damaged_generation_config_is_refused(tmp_path: Path, content: str) -> None:
    write_plain(tmp_path / "source", MQA, random_tensors(MQA))
    (tmp_path / "source" / "generation_config.json").write_text(content)
    refused(tmp_path / "source", r"generation_config\.json: line 1")


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_plain(tmp_path / "source", MQA, {})
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "source" / "model.pt")
    refused(
        tmp_path / "source",
        r"expected model\.safetensors or pytorch_model\.bin.* found config\.json, model\.pt",
    )


# --- pickled weights ---


class Canary:
    """Makes the file `path` when it is unpickled by something that obeys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parity
@pytest.mark.parametrize("sharded", [False, True])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, sharded: bool) -> None:
    import torch

    canary, sign = tmp_path / "canary", tmp_path / "sign"
    source = write_source(tmp_path / "source", *SOURCES["mqa"][1]("float32"), "sharded-bin")
    name = "pytorch_model-00002-of-00003.bin" if sharded else "pytorch_model.bin"
    if not sharded:
        (source / "pytorch_model.bin.index.json").unlink()
    torch.save({"transformer.wte.weight": Canary(canary)}, source / name)
    refused(source, r"wants '(posix|nt)\.mkdir' called.* was not loaded")
    assert not canary.exists()
    # Control: the trap works on a loader that obeys.
    torch.save(Canary(sign), tmp_path / "control.bin")
    torch.load(tmp_path / "control.bin", weights_only=False)
    assert sign.exists()


def test_bare_pickle_is_refused_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    canary = tmp_path / "canary"
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", MQA.to_hf_config())
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    refused(source, r"begins with b'\\x80.*expected the zip archive that torch\.save writes")
    assert not canary.exists()


def test_missing_torch_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", MQA.to_hf_config())
    with zipfile.ZipFile(source / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    refused(source, r"pytorch_model\.bin: .*not installed; run `pip install torch`", ValueError)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"begins with b'version https"),
        (b"PK\x05\x06" + bytes(18), "holds|torch cannot read it|not installed"),
    ],
)
def test_bin_that_is_no_archive_of_tensors_is_refused(
    tmp_path: Path, content: bytes, match: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", MQA.to_hf_config())
    (source / "pytorch_model.bin").write_bytes(content)
    refused(source, match, ValueError)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A few kilobytes could become gigabytes of pickle."""
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", MQA.to_hf_config())
    with zipfile.ZipFile(source / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    refused(source, r"entry 'archive/data\.pkl' is compressed")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda torch: [torch.zeros(2)], "holds a list, expected a dict"),
        (lambda torch: {}, "holds a dict, expected a dict: tensor name"),
        (lambda torch: {"state_dict": {"a": torch.zeros(2)}}, "'state_dict' is a dict"),
        (lambda torch: {"step": 3}, "'step' is a int, expected a tensor"),
        (lambda torch: {1: torch.zeros(2)}, "1 is a Tensor"),
        (lambda torch: {"a": torch.zeros(2, dtype=torch.float64)}, "'a' is torch.float64"),
        (lambda torch: {"a": torch.zeros(2, 2).to_sparse()}, "'a' is torch.sparse_coo"),
        (lambda torch: {"a": torch.zeros(2, device="meta")}, "on meta"),
        (lambda torch: {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, "but 4 are stored"),
    ],
)
def test_bin_with_other_content_is_refused(tmp_path: Path, content: Any, match: str) -> None:
    """The last one claims 4 TB with four bytes of data, which reading would allocate."""
    import torch

    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", MQA.to_hf_config())
    torch.save(content(torch), source / "pytorch_model.bin")
    refused(source, match)


@pytest.mark.parity
def test_cut_off_bin_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", *SOURCES["mqa"][1]("float32"), "bin")
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    refused(source, r"pytorch_model\.bin: ")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight_map": {}}, "weight_map is {}, expected an object"),
        ({"weight_map": {"a": "../x.bin"}}, "expected the plain name of a .bin file"),
        ({"weight_map": {"a": "model.safetensors"}}, "expected the plain name of a .bin file"),
        ({"weight_map": {"a": "none.bin"}}, r"none\.bin: no such file"),
        (
            {"weight_map": {"a": "pytorch_model-00001-of-00003.bin"}},
            "weight_map has 'a' in .*(?s:.)*holds .* does not list",
        ),
    ],
)
def test_index_that_does_not_describe_its_shards_is_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    source = write_source(tmp_path / "source", *SOURCES["mqa"][1]("float32"), "sharded-bin")
    edit_json(source / "pytorch_model.bin.index.json", **change)
    refused(source, match)


@pytest.mark.parity
def test_single_and_sharded_bin_together_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", *SOURCES["mqa"][1]("float32"), "sharded-bin")
    save_torch(source / "pytorch_model.bin", random_tensors(MQA))
    refused(source, "holds both pytorch_model.bin and")


def test_safetensors_are_preferred_to_a_pickle(tmp_path: Path) -> None:
    write_plain(tmp_path / "source", MQA, random_tensors(MQA))
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"not looked at")
    convert(tmp_path / "source", tmp_path / "converted")
    assert_same_bits(written(tmp_path / "converted"), random_tensors(MQA))


# --- the command and the Hub ---


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_status:
        command.main()
    return exit_status.value.code


def test_command_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, destination = tmp_path / "source", tmp_path / "converted"
    write_plain(source, MQA, random_tensors(MQA))
    assert run_command(monkeypatch, "convert", source, destination, "--dtype", "bfloat16") == 0
    assert {array.dtype.name for array in written(destination).values()} == {"bfloat16"}
    output = capsys.readouterr()
    assert output.out == ""
    note = f"note: {source} has no tokenizer.json, so {destination} has none\n"
    assert output.err == f"{note}{destination}: written\n"


def test_mistake_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "convert", tmp_path / "none", tmp_path / "converted") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("conversion: ")
    assert output.err.count("\n") == 1
    assert not (tmp_path / "converted").exists()


class FakeHub:
    """Stands for `snapshot_download`: gives `folder` the files of a repository that are asked."""

    def __init__(self, folder: Path, *files: str, error: Exception | None = None) -> None:
        self.folder, self.files, self.error = folder, files, error
        self.asked: list[list[str]] = []

    def __call__(self, repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.asked.append(allow_patterns)
        if self.error is not None:
            raise self.error
        self.folder.mkdir(exist_ok=True)
        for name in self.files:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (self.folder / name).touch()
        return str(self.folder)


@pytest.mark.parametrize(
    ("files", "calls"),
    [
        (("config.json", "model.safetensors", "pytorch_model.bin"), 1),
        (("config.json", "tokenizer.json", "pytorch_model.bin", "evil.py"), 2),
        (("config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"), 2),
    ],
)
def test_pickles_are_downloaded_only_without_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], calls: int
) -> None:
    hub = FakeHub(tmp_path / "cache", *files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    folder = resolve_source("someone/model")
    assert len(hub.asked) == calls
    unwanted = {"evil.py"} | ({"pytorch_model.bin"} if calls == 1 else set())
    assert {path.name for path in folder.iterdir()} == set(files) - unwanted


def test_repository_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", "config.json", "tf_model.h5")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    with pytest.raises(CheckpointError, match=r"neither safetensors nor pytorch_model\.bin"):
        resolve_source("someone/model")


def test_unreachable_repository_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", error=OSError("no route"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    with pytest.raises(CheckpointError, match=r"someone/model: .*no route"):
        resolve_source("someone/model")
    assert len(hub.asked) == 1


def test_failed_download_of_the_pickles_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", "config.json")

    def fail_at_second(repo: str, **arguments: Any) -> str:
        if hub.asked:
            raise OSError("no route")
        return hub(repo, **arguments)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail_at_second)
    with pytest.raises(CheckpointError, match=r"its \.bin weights failed.*no route.*hf download"):
        resolve_source("someone/model")


@pytest.mark.parametrize("path", ["./none", "/none/such/folder", "~/none"])
def test_missing_folder_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder, expected the folder of a"):
        resolve_source(path)
