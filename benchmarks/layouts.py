"""The measurements behind docs/decisions: one decode loop, one layout choice changed at a time.

``python -m benchmarks.layouts [--context 512]``

A stripped greedy decode loop at the 164M shape in plain JAX (float32, one row, precision HIGHEST),
so that what is compared is the layout and nothing else:

    base         weights [out, in], weight first in the product, layers unrolled, K and V in one
                 buffer, the rest of a chunk skipped (lax.cond) once all rows have ended
    row-first    the same weights, activations first in the product
    in-out       weights [in, out]
    scanned      layers stacked and scanned, the cache in the carry
    separate-kv  K and V in two buffers
    fused-qkv    one product for q, k and v
    no-skip      without lax.cond around the forward pass
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from .harness import Measurement, interleaved, summarise, write_result

L, D, N, H, F, V, P = 20, 768, 12, 64, 3072, 49152, 8192
STEPS = 16

Array = jax.Array


@dataclass(frozen=True)
class Layout:
    """The choices; defaults are ours."""

    out_in: bool = True
    weight_first: bool = True
    unrolled: bool = True
    one_buffer: bool = True
    split_qkv: bool = True
    skip: bool = True


LAYOUTS = {
    "base": Layout(),
    "row-first": Layout(weight_first=False),
    "in-out": Layout(out_in=False, weight_first=False),
    "scanned": Layout(unrolled=False),
    "separate-kv": Layout(one_buffer=False),
    "fused-qkv": Layout(split_qkv=False),
    "no-skip": Layout(skip=False),
}


@dataclass(frozen=True)
class Layouts:
    """Measure the layouts."""

    context: int = 512
    """Cache slots."""
    rounds: int = 5
    only: tuple[str, ...] = tuple(LAYOUTS)
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON."""
        measures = {name: measure(LAYOUTS[name], self.context) for name in self.only}
        results = interleaved(
            {name: run for name, (run, _) in measures.items()}, rounds=self.rounds
        )
        others = [name for name in self.only if name != "base"]
        summary = summarise(results, ours="base", others=others)
        compiled = {name: seconds for name, (_, seconds) in measures.items()}
        settings = {"context": self.context, "compile_seconds": compiled}
        write_result(f"layouts-{self.context}", {"settings": settings} | summary, out=self.out)


def measure(layout: Layout, context: int) -> tuple[Callable[[], Measurement], float]:
    """A function that decodes one chunk, and the seconds its program took to compile."""
    params = _params(layout)
    n_buffers = 1 if layout.one_buffer else 2
    shape = (1, context, 2 * H // n_buffers)

    def state() -> tuple[Any, ...]:
        layers = [tuple(jnp.zeros(shape) for _ in range(n_buffers)) for _ in range(L)]
        cache = layers if layout.unrolled else _stack(layers)
        return jnp.zeros((1, V)), cache, jnp.full((1,), context - STEPS, jnp.int32)

    remaining = jnp.full((1,), STEPS + 1, jnp.int32)
    start = time.perf_counter()
    compiled = _decode.lower(layout, params, state(), remaining).compile()
    seconds = time.perf_counter() - start

    def run() -> Measurement:
        fresh = jax.block_until_ready(state())
        begin = time.perf_counter()
        jax.block_until_ready(compiled(params, fresh, remaining))
        return {"milliseconds_per_token": 1000 * (time.perf_counter() - begin) / STEPS}

    return run, seconds


def _params(layout: Layout) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def weight(n_out: int, n_in: int) -> Array:
        shape = (n_out, n_in) if layout.out_in else (n_in, n_out)
        return jnp.asarray(0.02 * rng.standard_normal(shape, dtype=np.float32))

    def block() -> dict[str, Array]:
        qkv = {"qkv": weight(D + 2 * H, D)}
        if layout.split_qkv:
            qkv = {"q": weight(D, D), "kv": weight(2 * H, D)}
        return qkv | {"proj": weight(D, D), "fc": weight(F, D), "out": weight(D, F)}

    blocks = [block() for _ in range(L)]
    return {
        "wte": jnp.asarray(0.1 * rng.standard_normal((V, D), dtype=np.float32)),
        "wpe": jnp.asarray(0.1 * rng.standard_normal((P, D), dtype=np.float32)),
        "blocks": blocks if layout.unrolled else _stack(blocks),
    }


def _stack(layers: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _product(layout: Layout, x: Array, weight: Array) -> Array:
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    if layout.weight_first:
        return product("oi,ri->or", weight, x).T
    return product("ri,oi->ro" if layout.out_in else "ri,io->ro", x, weight)


def _block(
    layout: Layout, x: Array, p: dict[str, Array], buffers: tuple[Array, ...], slot: Array
) -> tuple[Array, tuple[Array, ...]]:
    product = functools.partial(_product, layout)
    normed = _norm(x)
    if layout.split_qkv:
        q, kv = product(normed, p["q"]), product(normed, p["kv"])
    else:
        q, kv = jnp.split(product(normed, p["qkv"]), [D], axis=-1)
    new = jnp.split(kv, len(buffers), axis=-1)
    buffers = tuple(
        buffer.at[jnp.arange(1), slot].set(part, mode="drop")
        for buffer, part in zip(buffers, new, strict=True)
    )
    k, v = (buffers[0][..., :H], buffers[0][..., H:]) if layout.one_buffer else buffers
    high = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    scores = high("rnh,rsh->rns", q.reshape(1, N, H), k) / H**0.5
    visible = jnp.arange(k.shape[1])[None, None] <= slot[:, None, None]
    scores = jnp.where(visible, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = high("rns,rsh->rnh", weights, v) / weights.sum(-1, keepdims=True)
    x = x + product(mixed.reshape(1, D), p["proj"])
    return x + product(jax.nn.gelu(product(_norm(x), p["fc"])), p["out"]), buffers


def _norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(layout: Layout, params: dict[str, Any], state: Any, remaining: Array) -> Any:
    head = dataclasses.replace(layout, out_in=True)

    def forward(token: Array, cache: Any, slot: Array) -> tuple[Array, Any]:
        x = params["wte"][token] + params["wpe"][slot]
        if layout.unrolled:
            new = []
            for p, buffers in zip(params["blocks"], cache, strict=True):
                x, buffers = _block(layout, x, p, buffers, slot)
                new.append(buffers)
            cache = new
        else:

            def body(carry: Any, inputs: Any) -> tuple[Any, None]:
                x, cache = carry
                i, p = inputs
                x, buffers = _block(layout, x, p, tuple(c[i] for c in cache), slot)
                cache = tuple(c.at[i].set(b) for c, b in zip(cache, buffers, strict=True))
                return (x, cache), None

            (x, cache), _ = lax.scan(body, (x, cache), (jnp.arange(L), params["blocks"]))
        return _product(head, _norm(x), params["wte"]), cache

    def step(carry: Any, _: None) -> tuple[Any, Array]:
        logits, cache, slot, remaining = carry
        token = logits.argmax(-1)
        remaining = remaining - 1
        if layout.skip:
            logits, cache = lax.cond(
                jnp.any(remaining > 0),
                forward,
                lambda token, cache, slot: (logits, cache),
                token,
                cache,
                slot,
            )
        else:
            logits, cache = forward(token, cache, slot)
        return (logits, cache, slot + 1, remaining), token

    return lax.scan(step, (*state, remaining), None, length=STEPS)


if __name__ == "__main__":
    tyro.cli(Layouts).run()
