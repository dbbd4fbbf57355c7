"""Made-up weights with the statistics that a proof needs, at any shape.

A freshly initialised model answers every prompt with nearly equal logits, so that an argmax proves
nothing and a wrong attention hardly shows. These weights make each block move the residual stream
by about its own size, attention look at few tokens, and logits peak.
"""

import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes

LOGIT_STD = 6.0
"""Standard deviation of a position's logits: the best of 49,152 leads by about one."""


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
    if ".ln_" in name:
        gain = 1.0 + 0.1 * normal if name.endswith("weight") else 0.1 * normal
        # The tied head is narrow, so the last norm carries the spread of the logits.
        return (
            gain * np.float32(LOGIT_STD / _EMBEDDING_STD / config.n_embd**0.5)
            if (".ln_f." in name)
            else gain
        )
    if name.endswith("bias"):
        return 0.1 * normal
    if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
        return _EMBEDDING_STD * normal
    fan_in = shape[0] if config.model_type == "gpt2" else shape[1]
    # Queries and keys spread by 1.5 each: softmax over scores of std 2 looks at few tokens.
    gain = 1.5 if "c_attn" in name else 1.0
    return normal * np.float32(gain / fan_in**0.5)


_EMBEDDING_STD = 0.1
