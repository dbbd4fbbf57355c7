"""Made-up weights with the statistics that a proof needs, at any shape.

A freshly initialised model answers every prompt with nearly equal logits, so that an argmax proves
nothing and a wrong attention hardly shows. These weights make attention look at few tokens, each
block move the stream, logits peak, and greedy text wander through the vocabulary instead of
repeating itself (about 60 distinct tokens in 64 at the published shape).
"""

import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes

LOGIT_STD = 5.0
"""Standard deviation of a position's logits; at 49,152 words the best leads by about 0.7."""

_EMBEDDING_STD = 0.1

# Attention sharp and weak enough: sharper makes the network chaotic, so that rounding alone would
# decide the text (gain 2.25: float32 errors a hundred times larger); stronger mixes all positions
# into one, so that the text repeats one token.
_ATTENTION_GAIN, _ATTENTION_OUT_GAIN = 1.2, 0.3


def synthetic_tensors(config: ModelConfig, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Canonical float32 tensors of `config`, peaked as described above, the same for a seed."""
    return {
        name: _tensor(name, shape, config, np.random.default_rng([seed, index]))
        for index, (name, shape) in enumerate(sorted(tensor_shapes(config).items()))
    }


def _tensor(
    name: str, shape: tuple[int, ...], config: ModelConfig, rng: np.random.Generator
) -> np.ndarray:
    normal = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        return np.float32(0.02) * normal
    if ".ln_" in name:
        # The tied head is narrow, so the last norm carries the spread of the logits.
        gain = LOGIT_STD / _EMBEDDING_STD / config.n_embd**0.5 if ".ln_f." in name else 1.0
        return np.float32(gain) * (1 + np.float32(0.1) * normal)
    if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
        return np.float32(_EMBEDDING_STD) * normal
    axis_in = 0 if config.model_type == "gpt2" else 1
    if name.endswith("mlp.c_proj.weight"):
        # GELU's outputs have a positive mean; without this it pushes all tokens the same way.
        normal -= normal.mean(axis=axis_in, keepdims=True)
    gain = 1.0
    if "c_attn" in name:
        gain = _ATTENTION_GAIN
    elif name.endswith("attn.c_proj.weight"):
        gain = _ATTENTION_OUT_GAIN
    return normal * np.float32(gain / shape[axis_in] ** 0.5)
