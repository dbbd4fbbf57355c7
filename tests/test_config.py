"""`ModelConfig`: what it reads, what it writes, and what it refuses.

Damaged and foreign files are in test_broken_configs.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxcoder.config import ModelConfig
from jaxcoder.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "n_positions": 8,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 20,
}
FILE = {"model_type": "gpt_bigcode", "bos_token_id": 0, "eos_token_id": 0} | SIZES


def test_published_shape() -> None:
    config = ModelConfig.tiny_starcoder()
    assert (config.head_dim, config.n_kv_head) == (64, 1)
    assert config.attention_scale(0) == config.attention_scale(19) == 0.125
    assert config.eos_token_ids == (0,)  # id 0 is falsy, and real


def test_published_config_file() -> None:
    """As bigcode/tiny_starcoder_py publishes it, with fields that change no number."""
    fields = {
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "attn_pdrop": 0.1,
        "bos_token_id": 0,
        "embd_pdrop": 0.1,
        "eos_token_id": 0,
        "inference_runner": 0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "max_batch_size": None,
        "max_sequence_length": None,
        "model_type": "gpt_bigcode",
        "multi_query": True,
        "n_embd": 768,
        "n_head": 12,
        "n_inner": 3072,
        "n_layer": 20,
        "n_positions": 8192,
        "pad_key_length": True,
        "pre_allocate_kv_cache": False,
        "resid_pdrop": 0.1,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "torch_dtype": "float32",
        "transformers_version": "4.28.1",
        "use_cache": True,
        "validate_runner_input": True,
        "vocab_size": 49152,
    }
    assert ModelConfig.from_hf_config(fields) == ModelConfig.tiny_starcoder()


def test_defaults_are_those_of_transformers() -> None:
    gpt2 = ModelConfig.from_hf_config({"model_type": "gpt2"})
    assert gpt2 == ModelConfig(
        vocab_size=50257,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        n_inner=3072,
        multi_query=False,
        activation_function="gelu_new",
        bos_token_id=50256,
        eos_token_ids=(50256,),
        model_type="gpt2",
    )
    bigcode = ModelConfig.from_hf_config({"model_type": "gpt_bigcode"})
    assert bigcode == dataclasses.replace(
        gpt2,
        model_type="gpt_bigcode",
        multi_query=True,
        activation_function="gelu_pytorch_tanh",
    )


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["gpt_bigcode", "gpt2"])
def test_defaults_equal_those_of_the_installed_transformers(model_type: str) -> None:
    import transformers

    theirs = transformers.AutoConfig.for_model(model_type)
    ours = ModelConfig.from_hf_config({"model_type": model_type})
    for field, expected in ours.to_hf_config().items():
        if field == "n_inner":
            expected = None  # theirs means 4 x n_embd
        if field != "architectures":
            assert getattr(theirs, field) == expected, field


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("n_ctx", "n_positions"),
    ],
)
def test_aliases_are_read_and_must_agree(alias: str, name: str) -> None:
    fields = FILE.copy()
    fields[alias] = fields[name]
    assert ModelConfig.from_hf_config(fields) == ModelConfig.from_hf_config(FILE)
    del fields[name]
    assert ModelConfig.from_hf_config(fields) == ModelConfig.from_hf_config(FILE)
    fields[name] = fields[alias] + 1
    with pytest.raises(ConfigError, match=rf"{name} is \d+ but its alias {alias} \d+"):
        ModelConfig.from_hf_config(fields)


@pytest.mark.parametrize(
    ("eos", "ids"), [(None, ()), (0, (0,)), (3, (3,)), ([0, 5], (0, 5)), ([], ())]
)
def test_eos_token_id_may_be_a_number_a_list_or_null(eos: Any, ids: tuple[int, ...]) -> None:
    config = ModelConfig.from_hf_config(FILE | {"eos_token_id": eos})
    assert config.eos_token_ids == ids


def test_n_inner_null_or_missing_is_four_times_the_width() -> None:
    missing = {key: value for key, value in FILE.items() if key != "n_inner"}
    for fields in (missing, FILE | {"n_inner": None}):
        assert ModelConfig.from_hf_config(fields).n_inner == 48


def test_layer_norm_epsilon_null_is_the_default() -> None:
    """So it stands in a published copy of starcoderbase-3b."""
    fields = FILE | {"layer_norm_epsilon": None}
    assert ModelConfig.from_hf_config(fields).layer_norm_epsilon == 1e-5


def test_attention_scale_honours_its_two_switches() -> None:
    base = ModelConfig(**SIZES)
    assert base.attention_scale(1) == 1 / math.sqrt(4)
    assert dataclasses.replace(base, scale_attn_weights=False).attention_scale(1) == 1
    by_layer = dataclasses.replace(
        base, model_type="gpt2", multi_query=False, scale_attn_by_inverse_layer_idx=True
    )
    assert [by_layer.attention_scale(layer) for layer in (0, 1)] == [0.5, 0.25]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multi_query": False},
        {"multi_query": False, "model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
        {"eos_token_ids": (1, 2), "bos_token_id": 3, "pad_token_id": 4},
        {"tie_word_embeddings": False, "activation_function": "gelu", "layer_norm_epsilon": 1e-6},
        {"embd_pdrop": 0.0, "attn_pdrop": 0.2, "resid_pdrop": 0.3, "scale_attn_weights": False},
    ],
)
def test_round_trip_through_a_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = ModelConfig(**SIZES | changes)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_hf_config()))
    assert ModelConfig.from_file(path) == config


def test_initializer_range_may_be_zero() -> None:
    """It changes no number of a loaded model."""
    assert ModelConfig.from_hf_config(FILE | {"initializer_range": 0.0}).initializer_range == 0


def test_it_is_a_static_argument() -> None:
    assert hash(ModelConfig(**SIZES)) == hash(ModelConfig(**SIZES))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SIZES).n_embd = 1  # type: ignore[misc]


WRONG = {
    "vocab_size": (0, "vocab_size is 0, expected an integer from 1 to 16777216"),
    "n_positions": (-1, "n_positions is -1, expected an integer from 1"),
    "n_embd": (13, "n_embd is 13 and n_head 3; n_head must divide n_embd"),
    "n_layer": (1.0, r"n_layer is 1\.0, expected an integer"),
    "n_head": ("3", "n_head is '3', expected an integer"),
    "n_inner": (True, "n_inner is True, expected an integer"),
    "multi_query": (1, "multi_query is 1, expected true or false"),
    "activation_function": ("silu", "activation_function is 'silu', expected one of gelu_pytorch"),
    "layer_norm_epsilon": (0, "layer_norm_epsilon is 0, expected a number above 0 and below 1"),
    "scale_attn_weights": (None, "scale_attn_weights is None, expected true or false"),
    "scale_attn_by_inverse_layer_idx": (True, "but only model_type gpt2 has it"),
    "tie_word_embeddings": ("yes", "tie_word_embeddings is 'yes', expected true or false"),
    "embd_pdrop": (1, "embd_pdrop is 1, expected a number from 0 up to, not including, 1"),
    "attn_pdrop": (-0.1, r"attn_pdrop is -0\.1, expected a number from 0"),
    "resid_pdrop": (math.nan, "resid_pdrop is nan, expected a number from 0"),
    "initializer_range": (math.inf, "initializer_range is inf, expected a number from 0"),
    "bos_token_id": (17, "bos_token_id is 17, expected an id below vocab_size 17"),
    "pad_token_id": (-1, "pad_token_id is -1, expected an id below vocab_size 17"),
    "eos_token_ids": ((0, True), "eos_token_id is True, expected an id below vocab_size 17"),
}


@pytest.mark.parametrize("field", WRONG)
def test_every_field_is_checked(field: str) -> None:
    value, message = WRONG[field]
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**SIZES | {field: value})


def test_the_table_of_wrong_values_covers_every_field() -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields - WRONG.keys() == {"model_type"}


def test_gpt2_has_no_multi_query() -> None:
    with pytest.raises(ConfigError, match="multi_query is true, but model_type gpt2 has one"):
        ModelConfig(**SIZES | {"model_type": "gpt2"})


def test_all_problems_are_listed_at_once_and_not_without_end() -> None:
    with pytest.raises(ConfigError, match=r"n_embd is 0.*multi_query is 7.*embd_pdrop is 2"):
        ModelConfig(**SIZES | {"n_embd": 0, "multi_query": 7, "embd_pdrop": 2})
    with pytest.raises(ConfigError, match="and 80 more"):
        ModelConfig(**SIZES | {"eos_token_ids": (99,) * 100})
