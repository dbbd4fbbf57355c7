"""Low-rank adapters: W + alpha / rank * B A in place of chosen weights W, of which A and B train.

The adapters are a tree like that of the parameters: where those have h_0/attn/q/weight [out, in],
these have h_0/attn/q/{a [rank, in], b [out, rank]}. B starts as zeros, so that the first step
starts from the frozen model exactly.

Source: Hu et al. arXiv:2106.09685.
"""

import jax
import jax.numpy as jnp

from jaxcoder.config import ModelConfig
from jaxcoder.errors import ConfigError
from jaxcoder.hf_names import insert
from jaxcoder.problems import raise_if_any
from jaxcoder.products import FLOAT32, product

from .config import LoraConfig

Array = jax.Array

TARGETS = LoraConfig().targets


def check_lora(config: LoraConfig, model: ModelConfig) -> None:
    """Refuse settings that give no adapters for `model`.

    Raises:
      ConfigError: the rank is below 0 or above the smallest side of a target, alpha is not
        positive, or a target is unknown, repeated or missing; all of them listed.
    """
    problems = []
    shapes = target_shapes(model)
    chosen = [name for name in config.targets if name in shapes] or list(shapes)
    least = min(chosen, key=lambda name: min(shapes[name]))
    if not 0 <= config.rank <= min(shapes[least]):
        problems.append(
            f"rank is {config.rank}, expected 0 to {min(shapes[least])}, the least side of {least} "
            f"{list(shapes[least])}"
        )
    if not config.alpha > 0:
        problems.append(f"alpha is {config.alpha}, expected a number above 0")
    unknown = [name for name in config.targets if name not in TARGETS]
    if unknown or not config.targets or len(set(config.targets)) < len(config.targets):
        problems.append(
            f"targets is {', '.join(config.targets) or 'empty'}, expected one or more of "
            f"{', '.join(TARGETS)}, each once"
        )
    raise_if_any(problems, "lora", remedy="change it", error=ConfigError)


def target_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of the weight of each target, by its name."""
    width, inner = model.n_embd, model.n_inner
    shapes = {
        "attn/q": (width, width),
        "attn/kv": (2 * model.head_dim * model.n_kv_head, width),
        "attn/c_proj": (width, width),
        "mlp/c_fc": (inner, width),
        "mlp/c_proj": (width, inner),
    }
    return {name: shapes[name] for name in TARGETS}


def init_adapters(params: dict, key: Array, *, config: LoraConfig) -> dict:
    """Fresh adapters for the targets in every block of `params`: A normal, B zeros, float32."""
    adapters: dict = {}
    blocks = sorted((name for name in params if name.startswith("h_")), key=lambda n: int(n[2:]))
    for block in blocks:
        for target in config.targets:
            key, own_key = jax.random.split(key)
            path = (block, *target.split("/"))
            n_out, n_in = _at(params, path)["weight"].shape
            # Such that A x is of the size of x's elements.
            a = jax.random.normal(own_key, (config.rank, n_in), jnp.float32) / n_in**0.5
            insert(adapters, path, {"a": a, "b": jnp.zeros((n_out, config.rank), jnp.float32)})
    return adapters


def merge(params: dict, adapters: dict, *, config: LoraConfig) -> dict:
    """`params` with each adapter's product added to its weight; leaves without one as they are."""
    merged = {}
    for name, leaf in params.items():
        adapter = adapters.get(name)
        if adapter is None:
            merged[name] = leaf
        elif "a" in adapter:
            scale = config.alpha / config.rank
            change = scale * product("or,ri->oi", adapter["b"], adapter["a"], FLOAT32)
            weight = (leaf["weight"].astype(jnp.float32) + change).astype(leaf["weight"].dtype)
            merged[name] = leaf | {"weight": weight}
        else:
            merged[name] = merge(leaf, adapter, config=config)
    return merged


def _at(params: dict, path: tuple[str, ...]) -> dict:
    for key in path:
        params = params[key]
    return params
