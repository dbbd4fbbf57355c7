"""The proof at the full shape without PyTorch: ``python -m benchmarks.proof``.

Makes a checkpoint of the published 164M shape with random weights, loads it, decodes from it, and
compares every logit with the model's definition in NumPy float64.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from conversion import parity
from conversion.synthetic import synthetic_tensors
from conversion.verify import LOGITS_BOUND
from jaxcoder import reference
from jaxcoder.checkpoint import load_checkpoint, save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf, params_to_hf
from jaxcoder.model import GPTBigCode

PROMPT_TOKENS, NEW_TOKENS = 64, 64


def main() -> int:
    """Run the proof; the exit status is 0 when it holds."""
    config = ModelConfig.tiny_starcoder()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoint"
        start = time.perf_counter()
        save_checkpoint(folder, config, params_from_hf(synthetic_tensors(config), config))
        _say("made a checkpoint of the published shape (random weights)", start)
        start = time.perf_counter()
        config, params = load_checkpoint(folder, dtype="float32")
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        _say(f"checked every hash, name and shape, and loaded {count:,} parameters", start)

    model = GPTBigCode(config)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT_TOKENS).tolist()
    start = time.perf_counter()
    tokens = parity.greedy(model, params, [prompt], NEW_TOKENS)[0]
    _say(f"compiled, read {PROMPT_TOKENS} tokens and decoded {NEW_TOKENS}", start)
    start = time.perf_counter()
    parity.greedy(model, params, [prompt], NEW_TOKENS)
    seconds = time.perf_counter() - start
    _say(f"the same again, {NEW_TOKENS / seconds:.0f} tokens/s", start)

    start = time.perf_counter()
    context = np.array(prompt + tokens)
    truth = reference.forward(params_to_hf(params, config), config, context).logits
    error = np.abs(parity.forward(model, params, context).logits - truth).max()
    _say("computed all of it once more in NumPy float64", start)
    limit = LOGITS_BOUND * max(10.0, np.abs(truth).max())
    # A token within twice the error of the best is a tie that float32 cannot decide.
    drawn_from = truth[PROMPT_TOKENS - 1 : -1]
    chosen = np.take_along_axis(drawn_from, np.array(tokens)[:, None], axis=-1)[:, 0]
    is_greedy = drawn_from.max(-1) - chosen <= 2 * error
    print(f"\nlargest logit difference {error:.1e} (allowed {limit:.1e})")
    print(
        f"{is_greedy.sum()} of {NEW_TOKENS} decoded tokens are the float64 argmax, or tie with it "
        "within twice that difference"
    )
    holds = bool(error <= limit and is_greedy.all())
    print("the proof holds" if holds else "THE PROOF FAILED")
    print(
        "\nNext, with the real weights (under BigCode OpenRAIL-M):\n"
        "  pip install .\n"
        "  jaxcoder complete 'def fibonacci(n):' --model bigcode/tiny_starcoder_py"
    )
    return 0 if holds else 1


def _say(what: str, start: float) -> None:
    print(f"{time.perf_counter() - start:5.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
