"""The proof itself: it holds on a good checkpoint, fails on a bad one, and names the place."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from conversion import parity, pytorch
from conversion.synthetic import synthetic_tensors
from conversion.verify import Bound, Report, Verify, format_report, verify
from jaxcoder import reference
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf
from jaxcoder.model import GPTBigCode

CONFIG = ModelConfig(vocab_size=512, n_positions=160, n_embd=64, n_layer=4, n_head=4, n_inner=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that transformers wrote."""
    path = tmp_path_factory.mktemp("verify") / "checkpoint"
    pytorch.write_checkpoint(path, CONFIG, synthetic_tensors(CONFIG))
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    """The proof, run once."""
    return verify(folder)


@pytest.mark.parity
def test_every_bound_holds_on_a_checkpoint_of_transformers(report: Report) -> None:
    assert report.holds, format_report(report)
    names = [bound.name for bound in report.bounds]
    for word in ("NumPy reference", "max |diff|", "mean KL", "RMS error", "KV cache", "greedy"):
        assert any(word in name for name in names), word
    assert len(report.layers["float32"]) == len(report.layers["bfloat16"]) == CONFIG.n_layer + 2
    text = format_report(report)
    assert "block 3" in text
    assert "all bounds hold" in text


@pytest.mark.parity
def test_command_prints_json_and_its_status_follows_the_bounds(
    folder: Path,
    report: Report,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conversion.verify.verify", lambda *_, **__: report)
    assert Verify(src=str(folder), json=True).run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["holds"] is True
    assert printed["versions"]["transformers"]
    assert all(bound["value"] <= bound["limit"] for bound in printed["bounds"])

    exceeded = [bound._replace(limit=-1.0) for bound in report.bounds if "KV" in bound.name]
    bad = dataclasses.replace(report, bounds=exceeded)
    monkeypatch.setattr("conversion.verify.verify", lambda *_, **__: bad)
    assert Verify(src=str(folder)).run() == 1
    assert "FAIL KV cache" in capsys.readouterr().out


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", range(CONFIG.n_layer))
@pytest.mark.parametrize(
    "leaf", [("attn", "q"), ("attn", "kv"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")]
)
def test_a_fault_planted_in_a_layer_is_located_there(
    folder: Path, leaf: tuple[str, str], layer: int, dtype: str
) -> None:
    """One row of one weight of one layer, 40 times over in all."""
    tensors = synthetic_tensors(CONFIG)
    params = params_from_hf(tensors, CONFIG)
    good = parity_table(folder, tensors, params, dtype)
    assert parity.first_faulty(good) is None

    part, name = leaf
    weight = params[f"h_{layer}"][part][name]["weight"].copy()
    weight[3] = -weight[3] if dtype == "float32" else -8 * weight[3]
    params[f"h_{layer}"][part][name]["weight"] = weight
    table = parity_table(folder, tensors, params, dtype)
    assert (
        parity.first_faulty(table, factor=10.0 if dtype == "float32" else 2.0) == f"block {layer}"
    )


TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 96)
_torch_rows: dict[str, pytorch.TorchForward] = {}


def parity_table(
    folder: Path, tensors: dict[str, np.ndarray], params: dict, dtype: str
) -> list[parity.LayerRow]:
    if dtype not in _torch_rows:
        _torch_rows[dtype] = pytorch.forward(pytorch.load(folder, dtype), TOKENS)
    kind = jax.numpy.dtype(dtype)
    rounded = {name: array.astype(kind) for name, array in tensors.items()}
    truth = reference.forward(rounded, CONFIG, TOKENS)
    held = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, kind), params)
    ours = parity.forward(GPTBigCode(CONFIG, dtype=kind, param_dtype=kind), held, TOKENS)
    return parity.layer_table(truth.residuals, ours.residuals, _torch_rows[dtype].residuals)


def test_a_divergence_is_a_tie_only_within_twice_the_error() -> None:
    exact = np.array([1.0, 2.0, 2.0 - 1e-6])
    rough = exact + np.array([0, 0, 2e-6])

    def explain(error_logits: np.ndarray) -> parity.Divergence | None:
        return parity.explain_divergence(
            7,
            [0],
            ours=[0, 1],
            pytorch=[0, 2],
            truth=lambda ids: exact,
            float32_logits=[lambda ids: exact, lambda ids: error_logits],
        )

    found = explain(rough)
    assert found is not None
    assert (found.prompt, found.position, found.ours, found.pytorch) == (7, 1, 1, 2)
    assert found.is_tie
    exact_to_1e_7 = explain(exact + 1e-7)
    assert exact_to_1e_7 is not None
    assert not exact_to_1e_7.is_tie


def test_a_bound_at_its_limit_holds_and_nan_never_does() -> None:
    bound = Bound("name", 1.0, 1.0, None)
    assert bound.holds
    assert not bound._replace(value=float("nan")).holds
    assert not bound._replace(value=1.1).holds


@pytest.mark.parametrize("options", [{}, {"src": "x", "synthetic": True}])
def test_either_src_or_synthetic_is_asked_for(options: dict) -> None:
    with pytest.raises(ValueError, match=r"give SRC, or --synthetic"):
        Verify(**options).run()


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, multi_query=False)])
def test_synthetic_logits_are_peaked_and_tokens_differ(config: ModelConfig) -> None:
    """A proof on flat logits or on one repeated token would prove little."""
    tensors = synthetic_tensors(config)
    logits = reference.forward(tensors, config, TOKENS).logits
    assert logits.std() > 2
    assert len(set(logits.argmax(-1).tolist())) > len(TOKENS) / 2
