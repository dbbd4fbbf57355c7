"""The NumPy reference computes what PyTorch's transformers compute, in float64.

PyTorch runs scaled-dot-product attention, because its eager GPT-BigCode takes the softmax in
float32; position ids are passed, because transformers derives them differently between versions.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from model_cases import CASES, MHA, MQA, VOCAB_SIZE, random_tensors, random_tokens

from jaxcoder import reference
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes

pytestmark = pytest.mark.parity

FLOAT64_TOLERANCE = 1e-10  # both sides round at 1e-16; logits are of order 10
LENGTH = 21


def torch_model(config: ModelConfig, *, seed: int = 0) -> Any:
    """transformers' model of `config` in float64, holding `random_tensors`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPTBigCodeConfig, GPTBigCodeForCausalLM

    config_class, model_class = {
        "gpt_bigcode": (GPTBigCodeConfig, GPTBigCodeForCausalLM),
        "gpt2": (GPT2Config, GPT2LMHeadModel),
    }[config.model_type]
    hf_config = config_class.from_dict(config.to_hf_config())
    model = model_class._from_config(hf_config, attn_implementation="sdpa").double().eval()
    tensors = {
        name: torch.from_numpy(array.astype(np.float64))
        for name, array in random_tensors(config, seed=seed).items()
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Float64 logits [T, V] of tokens [T]."""
    import torch

    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    positions = torch.arange(len(tokens))[None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions).logits[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_pytorch_in_float64(case: str) -> None:
    """Every choice of the config acts in the reference as it does in transformers."""
    config = CASES[case]
    tokens = random_tokens(LENGTH)
    expected = torch_logits(torch_model(config), tokens)
    got = reference.forward(random_tensors(config), config, tokens).logits
    assert expected.dtype == np.float64
    assert expected.std() > 1, "logits too flat to tell anything apart"
    assert np.abs(got - expected).max() <= FLOAT64_TOLERANCE


def test_residual_stream_equals_pytorch_layer_by_layer() -> None:
    """`Forward.residuals` is what transformers calls hidden states, so a fault can be located."""
    import torch

    tokens = random_tokens(LENGTH)
    with torch.no_grad():
        expected = torch_model(MQA)(
            input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
            position_ids=torch.arange(LENGTH)[None],
            output_hidden_states=True,
        ).hidden_states
    got = reference.forward(random_tensors(MQA), MQA, tokens).residuals
    # transformers leaves out the stream before the final norm and ends with the normed one.
    for layer in range(MQA.n_layer):
        assert np.abs(got[layer] - expected[layer][0].numpy()).max() <= FLOAT64_TOLERANCE
    assert np.abs(got[-1] - expected[-1][0].numpy()).max() <= FLOAT64_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_name_table_is_exactly_pytorchs_state_dict(case: str) -> None:
    """Names and shapes on disk are transformers' own, but for the tied head it also lists."""
    config = CASES[case]
    shapes = {
        name: tuple(tensor.shape) for name, tensor in torch_model(config).state_dict().items()
    }
    if config.tie_word_embeddings:
        assert shapes.pop("lm_head.weight") == (VOCAB_SIZE, config.n_embd)
    assert shapes == tensor_shapes(config)


WRONG_MODELS = {
    "erf instead of tanh": (MQA, {"activation_function": "gelu"}),
    "another epsilon": (MQA, {"layer_norm_epsilon": 1e-3}),
    "no scale": (MHA, {"scale_attn_weights": False}),
    "no scale by layer": (CASES["gpt2-by-layer"], {"scale_attn_by_inverse_layer_idx": False}),
}


@pytest.mark.parametrize("wrong", WRONG_MODELS)
def test_a_wrong_reference_is_far_from_pytorch(wrong: str) -> None:
    """Control: the comparison above would notice each of these mistakes."""
    config, change = WRONG_MODELS[wrong]
    tokens = random_tokens(LENGTH)
    mistaken = dataclasses.replace(config, **change)
    got = reference.forward(random_tensors(config), mistaken, tokens).logits
    assert np.abs(got - torch_logits(torch_model(config), tokens)).max() > 1e-6


def test_gpt2_packing_of_multi_head_weights_is_far_from_pytorch() -> None:
    """Control: GPT-BigCode interleaves q, k and v per head; reading them as GPT-2's is wrong."""
    tokens = random_tokens(LENGTH)
    tensors = random_tensors(MHA)
    packed_as_gpt2 = {
        name: array.T if ".attn.c_" in name or ".mlp.c_" in name else array
        for name, array in tensors.items()
    }
    mistaken = dataclasses.replace(MHA, model_type="gpt2")
    got = reference.forward(packed_as_gpt2, mistaken, tokens).logits
    expected = torch_logits(torch_model(MHA), tokens)
    assert np.abs(got - expected).max() > 1e-6
    same_layout = reference.forward(tensors, MHA, tokens).logits
    assert np.abs(same_layout - expected).max() <= FLOAT64_TOLERANCE
