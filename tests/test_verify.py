"""The proof itself: it holds on a good checkpoint, fails on a bad one, and names the place."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from conversion import parity, pytorch
from conversion import verify as verify_module
from conversion.prompts import prompt_ids
from conversion.report import Bound, Report, format_report
from conversion.synthetic import synthetic_tensors
from conversion.verify import FAULT_FACTOR, Verify, verify
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


def test_the_bounds_are_those_that_were_promised() -> None:
    """Changing a tolerance is a decision, and shows here."""
    assert verify_module.LOGITS_BOUND == 1e-5
    assert verify_module.KL_BOUND == 1e-9
    assert verify_module.REFERENCE_BOUND == 1e-10
    assert verify_module.RATIO_BOUND == {"float32": 1.5, "bfloat16": 0.8}
    assert verify_module.CACHE_BOUND == 1e-4
    assert verify_module.FULL_POSITIONS >= 4000
    assert (verify_module.FULL_PROMPTS, verify_module.NEW_TOKENS) == (164, 64)


@pytest.mark.parametrize(("summed", "lost"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_the_error_of_a_product_is_that_of_its_sums(summed: type, lost: float) -> None:
    """Control: sums in float16 lose a thousand times as much as sums in float32."""

    def multiply(a: np.ndarray, b: np.ndarray, kind: type = summed) -> np.ndarray:
        return a.astype(kind) @ b.astype(kind)

    found = parity.product_error(multiply, 64)
    assert found < lost
    assert parity.product_error(lambda a, b: multiply(a, b, np.float16), 64) > 100 * lost
    assert 0 < parity.product_error(parity.multiply, 64) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize(("ratio", "limit"), [(2.0, 3.0), (0.5, 1.5)])
def test_float32_may_err_more_where_products_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, limit: float
) -> None:
    """An AVX2 processor failed a sound model. Where our products err less, nothing is tightened."""
    monkeypatch.setattr(
        parity, "product_error", lambda of, _: ratio if of is parity.multiply else 1.0
    )
    limits = {bound.name: bound.limit for bound in verify(folder).bounds if "RMS" in bound.name}
    assert [limits[name] for name in sorted(limits)] == [0.8, limit]


def failed_bounds(folder: Path) -> list[str]:
    return [bound.name for bound in verify(folder).bounds if not bound.holds]


def all_about(failed: list[str], *words: str) -> bool:
    """Whether something failed, and every name that failed has one of `words`."""
    return bool(failed) and all(any(word in name for word in words) for name in failed)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("size", "dtype", "expected"),
    [
        (1e-2, "float32", ("max |diff|", "mean KL", "float32 RMS", "KV cache")),
        (1e-5, "float32", ("float32 RMS",)),
        (3e-1, "bfloat16", ("bfloat16 RMS",)),
    ],
)
def test_noise_on_our_logits_fails_the_bounds_it_should(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: float,
    dtype: str,
    expected: tuple[str, ...],
) -> None:
    real = parity.forward

    def noisy(model: GPTBigCode, params: dict, tokens: np.ndarray) -> parity.Layered:
        layered = real(model, params, tokens)
        if jax.numpy.dtype(model.dtype).name != dtype:
            return layered
        noise = size * np.random.default_rng(0).standard_normal(layered.logits.shape)
        return layered._replace(logits=layered.logits + noise)

    monkeypatch.setattr(parity, "forward", noisy)
    failed = failed_bounds(folder)
    assert all_about(failed, *expected), failed
    assert {word for word in expected for name in failed if word in name} == set(expected)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_out_of_line_fails_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    real = parity.forward

    def shifted(model: GPTBigCode, params: dict, tokens: np.ndarray) -> parity.Layered:
        layered = real(model, params, tokens)
        if jax.numpy.dtype(model.dtype).name == dtype:
            layered.residuals[3] = layered.residuals[3] * 1.1
        return layered

    monkeypatch.setattr(parity, "forward", shifted)
    assert failed_bounds(folder) == [f"{dtype} layers out of line, first: block 2"]


@pytest.mark.parity
def test_a_wrong_reference_a_wrong_cache_and_a_wrong_text_fail_each_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_reference, real_cached, real_greedy = reference.forward, parity._cached, parity.greedy

    def rough(*arguments: object) -> reference.Forward:
        result = real_reference(*arguments)
        return result._replace(logits=result.logits + 1e-9)

    def off_by_one(model: GPTBigCode, params: dict, tokens: jax.Array, cache: object) -> object:
        logits, cache = real_cached(model, params, tokens, cache)
        return logits, cache._replace(lengths=cache.lengths - 1)

    def other_token(*arguments: object) -> list[list[int]]:
        continuations = real_greedy(*arguments)
        continuations[2][5] = (continuations[2][5] + 1) % CONFIG.vocab_size
        return continuations

    monkeypatch.setattr(reference, "forward", rough)
    monkeypatch.setattr(parity, "_cached", off_by_one)
    monkeypatch.setattr(parity, "greedy", other_token)
    report = verify(folder)
    failed = [bound.name for bound in report.bounds if not bound.holds]
    assert len(failed) == 3, failed
    assert all_about(failed, "NumPy reference", "KV cache", "greedy: unexplained")
    assert "NOT EXPLAINED" in format_report(report)


@pytest.mark.parity
def test_generation_options_in_the_folder_do_not_change_pytorchs_text(
    folder: Path, tmp_path: Path
) -> None:
    """A repetition penalty in generation_config.json was reported as our divergence."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    options = {"repetition_penalty": 5.0, "min_new_tokens": 3, "forced_eos_token_id": 7}
    (copy / "generation_config.json").write_text(json.dumps(options))
    plain, penalised = (pytorch.load(path, "float32") for path in (folder, copy))
    prompt = TOKENS[:20].tolist()
    assert pytorch.greedy(penalised, prompt, 24) == pytorch.greedy(plain, prompt, 24)


@pytest.mark.parametrize("release", pytorch.BROKEN_ATTENTION)
@pytest.mark.parity
def test_releases_with_wrong_attention_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr("transformers.__version__", release)
    with pytest.raises(ValueError, match=rf"transformers {release} computes this attention wrong"):
        pytorch.load(folder, "float32")


@pytest.mark.parity
def test_an_unknown_torch_device_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"torch_device is 'xyz', expected 'cpu'"):
        pytorch.load(folder, "float32", "xyz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ('{"text": "x"}\n', "a field 'prompt'"),
        ("not json", "a field 'prompt'"),
        ("", "at least one prompt"),
        ('{"prompt": "x"}\n', "needs a tokenizer.json"),
    ],
)
def test_a_prompts_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    """It used to be replaced by random ids without a word."""
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=rf"{file}: .*{message}"):
        prompt_ids(tmp_path, CONFIG, 8, file=file)


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
    assert parity.first_faulty(good, factor=FAULT_FACTOR[dtype]) is None

    part, name = leaf
    weight = params[f"h_{layer}"][part][name]["weight"].copy()
    weight[3] = -weight[3] if dtype == "float32" else -8 * weight[3]
    params[f"h_{layer}"][part][name]["weight"] = weight
    table = parity_table(folder, tensors, params, dtype)
    assert parity.first_faulty(table, factor=FAULT_FACTOR[dtype]) == f"block {layer}"


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
