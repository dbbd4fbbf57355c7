"""The chunked cross-entropy: its value, its gradients, what it holds, z-loss, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import relative_error

from train.loss import chunked_cross_entropy

TOKENS, WIDTH, VOCAB = 20, 12, 61
# One float32 sum of some hundred terms in another order.
REORDERED = 1e-6
# bfloat16 has 3 digits.
BFLOAT16_TOLERANCE = 0.02


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "features": rng.standard_normal((TOKENS, WIDTH)).astype(np.float32),
        "head": rng.standard_normal((VOCAB, WIDTH)).astype(np.float32),
        "targets": rng.integers(0, VOCAB, TOKENS, dtype=np.int32),
        "weights": rng.random(TOKENS).astype(np.float32),
    }


def chunked(
    arrays: dict[str, np.ndarray], *, chunk: int, z_loss: float = 0.0, dtype: type = jnp.float32
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The loss and its gradients in features and head."""

    @jax.jit
    def loss_of(features: jax.Array, head: jax.Array) -> jax.Array:
        return chunked_cross_entropy(
            features,
            head,
            targets=arrays["targets"],
            weights=arrays["weights"],
            chunk=chunk,
            dtype=dtype,
            z_loss=z_loss,
        )

    return jax.value_and_grad(loss_of, argnums=(0, 1))(arrays["features"], arrays["head"])


def expected(
    arrays: dict[str, np.ndarray], *, z_loss: float = 0.0
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """The same in float64, written out."""
    features, head, weights = (
        arrays[name].astype(np.float64) for name in ("features", "head", "weights")
    )
    logits = features @ head.T
    normaliser = np.log(np.exp(logits).sum(axis=1))
    one_hot = np.eye(VOCAB)[arrays["targets"]]
    losses = normaliser - (logits * one_hot).sum(axis=1) + z_loss * normaliser**2
    softmax = np.exp(logits - normaliser[:, None])
    d_logits = softmax * (1 + 2 * z_loss * normaliser)[:, None] - one_hot
    d_logits *= weights[:, None]
    return float(weights @ losses), (d_logits @ head, d_logits.T @ features)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [1, 6, TOKENS, 1000])
def test_loss_and_gradients_equal_float64(chunk: int, z_loss: float) -> None:
    """Also where the chunk does not divide the tokens, and is longer than all of them."""
    arrays = inputs()
    loss, gradients = chunked(arrays, chunk=chunk, z_loss=z_loss)
    right_loss, right_gradients = expected(arrays, z_loss=z_loss)
    assert float(loss) == pytest.approx(right_loss, rel=REORDERED)
    assert relative_error(gradients, right_gradients) <= REORDERED


def test_z_loss_counts() -> None:
    """Control of the test above: off by default, and not small beside its tolerance."""
    arrays = inputs()
    without, with_it = (expected(arrays, z_loss=z_loss) for z_loss in (0.0, 0.01))
    assert with_it[0] > without[0] * 1.01
    assert relative_error(with_it[1], without[1]) > 1e-3
    loss, _ = chunked(arrays, chunk=6)
    assert float(loss) == pytest.approx(without[0], rel=REORDERED)


def test_gradients_equal_those_of_the_plain_formula() -> None:
    """Our derivative against the one JAX takes of its own cross-entropy."""
    arrays = inputs()

    def plain(features: jax.Array, head: jax.Array) -> jax.Array:
        logits = jnp.einsum("nd,vd->nv", features, head, precision="highest")
        rows = jnp.arange(TOKENS)
        return -(arrays["weights"] * jax.nn.log_softmax(logits)[rows, arrays["targets"]]).sum()

    right = jax.grad(plain, argnums=(0, 1))(arrays["features"], arrays["head"])
    _, gradients = chunked(arrays, chunk=6)
    assert relative_error(gradients, right) <= REORDERED


def test_a_factor_on_the_loss_scales_its_gradients() -> None:
    arrays = inputs()

    def thrice(features: jax.Array, head: jax.Array) -> jax.Array:
        return 3 * chunked_cross_entropy(
            features,
            head,
            targets=arrays["targets"],
            weights=arrays["weights"],
            chunk=6,
            dtype=jnp.float32,
        )

    got = jax.grad(thrice, argnums=(0, 1))(arrays["features"], arrays["head"])
    once = chunked(arrays, chunk=6)[1]
    assert relative_error(got, jax.tree.map(lambda leaf: 3 * leaf, once)) <= REORDERED


def test_a_token_of_weight_zero_adds_nothing() -> None:
    """Neither to the loss nor, bitwise, to any gradient, whatever its target."""
    arrays = inputs()
    arrays["weights"][3:7] = 0
    loss, (d_features, d_head) = chunked(arrays, chunk=6)
    changed = arrays | {"targets": arrays["targets"].copy()}
    changed["targets"][3:7] = (arrays["targets"][3:7] + 1) % VOCAB
    other_loss, (_, other_d_head) = chunked(changed, chunk=6)
    assert float(loss) == float(other_loss)
    assert np.array_equal(d_head, other_d_head)
    assert not np.any(np.asarray(d_features)[3:7])
    changed["targets"][8] = (arrays["targets"][8] + 1) % VOCAB
    assert float(chunked(changed, chunk=6)[0]) != float(loss)


def test_without_any_weight_the_loss_is_zero() -> None:
    arrays = inputs() | {"weights": np.zeros(TOKENS, np.float32)}
    loss, gradients = chunked(arrays, chunk=6)
    assert float(loss) == 0
    assert not any(np.any(np.asarray(leaf)) for leaf in gradients)


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    arrays = inputs()
    arrays["features"] *= 1000
    loss, gradients = chunked(arrays, chunk=6)
    logits = arrays["features"].astype(np.float64) @ arrays["head"].astype(np.float64).T
    largest = logits.max(axis=1)
    normaliser = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    losses = normaliser - logits[np.arange(TOKENS), arrays["targets"]]
    assert float(loss) == pytest.approx(float(arrays["weights"] @ losses), rel=1e-5)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in gradients)


def test_bfloat16_operands_stay_near_float32() -> None:
    arrays = inputs()
    loss, gradients = chunked(arrays, chunk=6, dtype=jnp.bfloat16)
    right_loss, right = expected(arrays)
    assert loss.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in gradients)
    assert float(loss) == pytest.approx(right_loss, rel=BFLOAT16_TOLERANCE)
    assert REORDERED < relative_error(gradients, right) <= BFLOAT16_TOLERANCE


def largest_temporary(chunk: int) -> int:
    """Bytes that loss and gradients of 512 tokens and 4,096 words need beside in- and output."""
    shapes = {"features": (512, 8), "head": (4096, 8), "targets": (512,), "weights": (512,)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    arrays["targets"] = arrays["targets"].astype(np.int32)

    def loss_of(features: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array):
        return chunked_cross_entropy(
            features, head, targets=targets, weights=weights, chunk=chunk, dtype=jnp.float32
        )

    compiled = jax.jit(jax.grad(loss_of, argnums=(0, 1))).lower(*arrays.values()).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_logits_of_all_tokens_are_never_held() -> None:
    """Control: in one chunk they are, and the measure sees them."""
    all_logits = 512 * 4096 * 4
    assert largest_temporary(32) < all_logits / 4
    assert largest_temporary(512) >= all_logits
