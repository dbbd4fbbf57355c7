"""What `export` writes is bit for bit the checkpoint, and a whole folder to transformers."""

import dataclasses
import gzip
import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import MQA, random_tensors, snapshot, write_json, write_plain
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from conversion import __main__ as command
from conversion.export import export
from conversion.synthetic import synthetic_tensors
from jaxcoder import Generator
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, TokenizerError
from jaxcoder.safetensors_file import read_header, read_tensor, write_safetensors
from jaxcoder.tokenizer import Tokenizer

# The byte tokenizer needs 276 ids; CTranslate2 pads a vocabulary for gpt_bigcode, not for gpt2.
MQA = dataclasses.replace(MQA, vocab_size=276, n_positions=64, bos_token_id=0)
MHA = dataclasses.replace(MQA, multi_query=False)
CONFIGS = {
    "mqa": MQA,
    "mha": MHA,
    "gpt2": dataclasses.replace(MHA, model_type="gpt2", activation_function="gelu_new"),
    "untied": dataclasses.replace(MQA, tie_word_embeddings=False),
}

# Any of these is told apart by a pre-tokenizer that does not split digits.
DIGIT_TEXTS = [
    "return  1_000 + 42",
    "def f():\n    12 = 3\n",
    "\n\n    2024\t7   8",
    "x = 12  12",
]

EXPORTED = {
    *("config.json", "generation_config.json", "jaxcoder_manifest.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt"),
}


def write_sharded(folder: Path, config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    """A checkpoint in two shards, without our writer of shards."""
    folder.mkdir()
    write_json(folder / "config.json", config.to_hf_config())
    names = sorted(tensors)
    files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        write_safetensors(folder / file, {name: tensors[name] for name in part})
    listed = {name: files[i % 2] for i, name in enumerate(names)}
    write_json(folder / "model.safetensors.index.json", {"weight_map": listed})


def tensor_hashes(path: Path) -> dict[str, tuple[Any, ...]]:
    """dtype, shape and SHA-256 of every tensor of a safetensors file."""
    header = read_header(path)
    return {
        name: (
            info.dtype,
            info.shape,
            hashlib.sha256(read_tensor(path, name).tobytes()).hexdigest(),
        )
        for name, info in header.tensors.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("layout", CONFIGS)
def test_every_tensor_keeps_its_bits(
    tmp_path: Path, layout: str, sharded: bool, dtype: str
) -> None:
    """From Hugging Face's layout to parameters and back, in all 24 combinations."""
    config = CONFIGS[layout]
    tensors = random_tensors(config, dtype)
    write = write_sharded if sharded else write_plain
    write(tmp_path / "source", config, tensors)
    export(tmp_path / "source", tmp_path / "exported")
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert tensor_hashes(tmp_path / "exported" / "model.safetensors") == {
        name: (names[dtype], array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        for name, array in tensors.items()
    }
    fields = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (fields["dtype"], fields["torch_dtype"]) == (dtype, dtype)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with weights, config and tokenizer, and no more."""
    return write_source(tmp_path, MQA)


def write_source(tmp_path: Path, config: ModelConfig, dtype: str = "float32") -> Path:
    folder = tmp_path / "source"
    write_plain(folder, config, random_tensors(config, dtype))
    write_tokenizer(folder)
    return folder


def test_folder_is_complete_and_loads(source: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    destination = tmp_path / "exported"
    export(source, destination)
    assert snapshot(source) == before
    assert {path.name for path in destination.iterdir()} == EXPORTED
    assert read_header(destination / "model.safetensors").metadata == {"format": "pt"}
    assert (destination / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    manifest = json.loads((destination / "jaxcoder_manifest.json").read_text())
    assert set(manifest["files"]) == EXPORTED - {"jaxcoder_manifest.json", "model.safetensors"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((destination / name).read_bytes()).hexdigest() == digest
    generator = Generator.from_pretrained(str(destination), dtype="float32")
    assert generator.config == MQA


def test_small_files_say_what_transformers_reads(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "exported"
    export(source, destination)

    def read(name: str) -> dict[str, Any]:
        return json.loads((destination / name).read_text())

    special = [token["content"] for token in byte_tokenizer_json()["added_tokens"]]
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    assert read("special_tokens_map.json") == roles | {"additional_special_tokens": special}
    assert read("tokenizer_config.json") == roles | {
        "additional_special_tokens": special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    assert read("generation_config.json") == {"bos_token_id": 0, "eos_token_id": 0}
    fields = read("config.json")
    assert fields["architectures"] == ["GPTBigCodeForCausalLM"]
    assert ModelConfig.from_hf_config(fields) == MQA


def test_old_style_files_hold_vocabulary_and_merges(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "exported")
    definition = byte_tokenizer_json()["model"]
    vocab = (tmp_path / "exported" / "vocab.json").read_text(encoding="utf-8")
    assert list(json.loads(vocab).items()) == list(definition["vocab"].items())
    merges = (tmp_path / "exported" / "merges.txt").read_text(encoding="utf-8")
    expected = ["#version: 0.2", *(" ".join(merge) for merge in definition["merges"]), ""]
    assert merges.split("\n") == expected
    # The tokenizer holds the two files beside it against tokenizer.json.
    Tokenizer.from_file(tmp_path / "exported" / "tokenizer.json")


def test_old_style_files_have_the_size_of_the_published_ones(
    shared_data: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(MQA, vocab_size=49152, n_embd=3)
    write_plain(tmp_path / "source", config, random_tensors(config))
    shutil.copy(shared_data / "starcoder-tokenizer" / "tokenizer.json", tmp_path / "source")
    export(tmp_path / "source", tmp_path / "exported")
    sizes = {name: (tmp_path / "exported" / name).stat().st_size for name in OLD_STYLE_BYTES}
    assert sizes == OLD_STYLE_BYTES


OLD_STYLE_BYTES = {"vocab.json": 776_993, "merges.txt": 441_810}


def test_export_of_an_export_changes_no_byte(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "first")
    export(tmp_path / "first", tmp_path / "second")
    for name in EXPORTED:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_generation_config_of_the_source_is_kept(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text('{"eos_token_id":0, "do_sample": true}')
    export(source, tmp_path / "exported")
    for folder in (source, tmp_path / "exported"):
        text = (folder / "generation_config.json").read_text()
        assert text == '{"eos_token_id":0, "do_sample": true}'


def test_only_special_tokens_get_a_role(tmp_path: Path) -> None:
    """transformers makes a named token special, which would change the ids of ordinary text."""
    vocab = byte_tokenizer_json()["model"]["vocab"]
    config = dataclasses.replace(
        MQA, bos_token_id=vocab["def"], eos_token_ids=(5, 0), pad_token_id=4
    )
    export(write_source(tmp_path, config), tmp_path / "exported")
    fields = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert fields["bos_token"] == "<|endoftext|>"
    assert fields["eos_token"] == "<filename>"
    assert fields["pad_token"] == "<fim_pad>"
    generation = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 0]


def test_checkpoint_without_tokenizer_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain(tmp_path / "source", MQA, random_tensors(MQA))
    export(tmp_path / "source", tmp_path / "exported")
    assert not {path.name for path in (tmp_path / "exported").iterdir()} & {
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    }
    assert "has no tokenizer.json; " in capsys.readouterr().err


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path, dataclasses.replace(MQA, vocab_size=200))
    with pytest.raises(TokenizerError, match="below the model's vocab_size, 200"):
        export(source, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_damaged_weights_are_refused(source: Path, tmp_path: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export(source, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_taken_destination_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"taken: exists, .*nothing was written"):
        export(source, tmp_path / "taken")
    assert snapshot(tmp_path) == before


def test_command_exports(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = tmp_path / "exported"
    monkeypatch.setattr(sys, "argv", ["conversion", "export", str(source), str(destination)])
    with pytest.raises(SystemExit) as exit_status:
        command.main()
    assert exit_status.value.code == 0
    assert {path.name for path in destination.iterdir()} == EXPORTED


# --- transformers reads it ---


def load_in_transformers(folder: Path, dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
    )
    return model.eval(), info


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", CONFIGS)
def test_transformers_loads_what_it_saved(tmp_path: Path, layout: str, dtype: str) -> None:
    """A model of transformers, saved, exported and loaded again, is the model it was."""
    import torch
    import transformers

    config = CONFIGS[layout]
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config.to_hf_config()), dtype=getattr(torch, dtype)
    ).eval()
    model.save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "exported")
    loaded, info = load_in_transformers(tmp_path / "exported", dtype)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert transformers.AutoConfig.from_pretrained(tmp_path / "exported").dtype == model.dtype
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    tokens = torch.arange(40)[None] * 6
    with torch.inference_mode():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "exported")
    assert (generation.bos_token_id, generation.eos_token_id) == (0, 0)


@pytest.mark.parity
def test_missing_key_is_reported(source: Path, tmp_path: Path) -> None:
    """Negative control of the test above: transformers says when a tensor has another name."""
    export(source, tmp_path / "exported")
    path = tmp_path / "exported" / "model.safetensors"
    tensors = {name: read_tensor(path, name) for name in read_header(path).tensors}
    tensors["transformer.ln_g.bias"] = tensors.pop("transformer.ln_f.bias")
    write_safetensors(path, tensors)
    _, info = load_in_transformers(tmp_path / "exported")
    assert set(info["missing_keys"]) == {"transformer.ln_f.bias"}
    assert set(info["unexpected_keys"]) == {"transformer.ln_g.bias"}


@pytest.mark.parity
@pytest.mark.parametrize("layout", ["mqa", "gpt2"])
def test_auto_tokenizer_gives_our_ids(tmp_path: Path, layout: str) -> None:
    """transformers 5 drops the splitting of digits under the class of the published config."""
    import transformers

    config = CONFIGS[layout]
    folder = tmp_path / "exported"
    export(write_source(tmp_path, config), folder)
    ours = Tokenizer.from_file(folder / "tokenizer.json", model_type=config.model_type)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*DIGIT_TEXTS, "<fim_prefix>def f( x ) :<fim_suffix> . é<fim_middle><|endoftext|>"]
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text, special=True)
        assert theirs.decode(ids) == text  # no blank before punctuation is cleaned away
    assert theirs.model_max_length == 64
    assert set(theirs.all_special_ids) == set(ours.special_ids)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, None)


@pytest.mark.parity
def test_digit_texts_tell_the_wrong_tokenizer(source: Path, tmp_path: Path) -> None:
    """Negative control of the test above: with GPT2Tokenizer the same folder gives other ids."""
    import transformers

    folder = tmp_path / "exported"
    export(source, folder)
    ours = Tokenizer.from_file(folder / "tokenizer.json")
    theirs = transformers.GPT2Tokenizer.from_pretrained(folder, local_files_only=True)
    assert all(theirs(text)["input_ids"] != ours.encode(text) for text in DIGIT_TEXTS)


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["gpt_bigcode", "gpt2"])
def test_auto_tokenizer_gives_our_ids_on_humaneval(
    shared_data: Path, tmp_path: Path, model_type: str
) -> None:
    import transformers

    layout = "mqa" if model_type == "gpt_bigcode" else "gpt2"
    config = dataclasses.replace(CONFIGS[layout], vocab_size=49152, n_embd=3)
    write_plain(tmp_path / "source", config, random_tensors(config))
    shutil.copy(shared_data / "starcoder-tokenizer" / "tokenizer.json", tmp_path / "source")
    folder = tmp_path / "exported"
    export(tmp_path / "source", folder)
    ours = Tokenizer.from_file(folder / "tokenizer.json", model_type=model_type)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    # model_max_length is the tiny model's: the longer prompts would be warned about.
    theirs.model_max_length = 8192
    assert len(prompts) == 164
    assert theirs(prompts)["input_ids"] == [ours.encode(prompt) for prompt in prompts]


@pytest.mark.nightly
@pytest.mark.parity
@pytest.mark.parametrize("layout", ["mqa", "gpt2", "untied"])  # it has no multi-head gpt_bigcode
def test_ctranslate2_runs_the_export(tmp_path: Path, layout: str) -> None:
    """Another engine converts the folder, by its own reader of it, and decodes our tokens."""
    if importlib.util.find_spec("ctranslate2") is None:
        pytest.skip("ctranslate2 is not installed: pip install ctranslate2")
    import ctranslate2
    import transformers
    from ctranslate2.converters import TransformersConverter

    config = dataclasses.replace(CONFIGS[layout], n_embd=24)
    write_plain(tmp_path / "source", config, synthetic_tensors(config))
    write_tokenizer(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "exported")
    ours = Generator.from_pretrained(str(tmp_path / "exported"), dtype="float32")
    TransformersConverter(str(tmp_path / "exported")).convert(str(tmp_path / "ctranslate2"))
    engine = ctranslate2.Generator(str(tmp_path / "ctranslate2"), compute_type="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in DIGIT_TEXTS:
        prompt = tokenizer(text)["input_ids"]
        result = engine.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt)],
            max_length=20,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        expected = ours.generate(prompt, max_new_tokens=20).tokens
        assert result[0].sequences_ids[0] == [token for token in expected if token != 0]
