"""The name table is lossless, and splits the fused projection where the three layouts say."""

import dataclasses

import numpy as np
import pytest

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import (
    canonical_name,
    is_mask_buffer,
    params_from_hf,
    params_to_hf,
    tensor_shapes,
)

MQA = ModelConfig(vocab_size=17, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=20)
CONFIGS = {
    "mqa": MQA,
    "mha": dataclasses.replace(MQA, multi_query=False),
    "gpt2": dataclasses.replace(MQA, multi_query=False, model_type="gpt2"),
    "untied": dataclasses.replace(MQA, tie_word_embeddings=False),
}


def random_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


@pytest.mark.parametrize("layout", CONFIGS)
def test_to_params_and_back_is_bit_equal(layout: str) -> None:
    config = CONFIGS[layout]
    tensors = random_tensors(config)
    back = params_to_hf(params_from_hf(tensors, config), config)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].flags["C_CONTIGUOUS"]
        assert back[name].tobytes() == array.tobytes(), name


def test_published_shape_has_its_244_tensors_and_parameter_count() -> None:
    shapes = tensor_shapes(ModelConfig.tiny_starcoder())
    assert len(shapes) == 244
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 164_144_128
    assert shapes["transformer.h.19.attn.c_attn.weight"] == (896, 768)


@pytest.mark.parametrize("layout", ["mqa", "mha", "gpt2"])
def test_each_row_of_c_attn_lands_where_its_layout_says(layout: str) -> None:
    """Row ids as weights: the row of (head, part, j) is counted out from the documentation."""
    config = CONFIGS[layout]
    n, h, d = 3, 4, 12
    rows = {"mqa": d + 2 * h, "mha": 3 * d, "gpt2": 3 * d}[layout]
    tensors = random_tensors(config)
    weight = np.repeat(np.arange(rows, dtype=np.float32)[:, None], d, axis=1)
    tensors["transformer.h.1.attn.c_attn.weight"] = weight.T if layout == "gpt2" else weight
    tensors["transformer.h.1.attn.c_attn.bias"] = np.arange(rows, dtype=np.float32)
    attn = params_from_hf(tensors, config)["h_1"]["attn"]

    def row(part: int, head: int, j: int) -> int:
        if layout == "mqa":
            return head * h + j if part == 0 else n * h + (part - 1) * h + j
        return head * 3 * h + part * h + j if layout == "mha" else part * d + head * h + j

    for head in range(n):
        for j in range(h):
            assert attn["q"]["weight"][head * h + j, 0] == row(0, head, j)
            assert attn["q"]["bias"][head * h + j] == row(0, head, j)
    for head in range(config.n_kv_head):
        for part in (0, 1):
            for j in range(h):
                leaf = (head * 2 + part) * h + j
                assert attn["kv"]["weight"][leaf, 5] == row(1 + part, head, j)
                assert attn["kv"]["bias"][leaf] == row(1 + part, head, j)


def test_names_with_and_without_prefix_and_mask_buffers() -> None:
    assert canonical_name("h.0.ln_1.bias") == "transformer.h.0.ln_1.bias"
    assert canonical_name("lm_head.weight") == "lm_head.weight"
    for name in ("h.3.attn.bias", "transformer.h.0.attn.masked_bias", "transformer.bias"):
        assert is_mask_buffer(name)
    for name in ("h.3.attn.c_attn.bias", "transformer.ln_f.bias", "h.x.attn.bias"):
        assert not is_mask_buffer(name)
