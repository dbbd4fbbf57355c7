"""From a run to a folder: the weights trained are the weights that others load.

The second half trains adapters on such a folder, through the whole loop.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import full_logits, random_tokens
from train_cases import assert_bitwise_equal, flat
from training_run import MODEL, run_config
from watched_steps import PowerCut, watched

from jaxcoder import Generator, layers
from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.manifest import MANIFEST_FILE
from train import cli
from train.config import LoraConfig, TrainConfig
from train.export import export_run
from train.loop import fit
from train.metrics import read_json_lines

TOKENS = random_tokens(3, 40, vocab_size=MODEL.vocab_size)
# Float32 sums in another order: a padded prompt, another library, adapters merged or beside.
TOLERANCE = 1e-5
LORA = LoraConfig(rank=4, alpha=8.0)


class Run(NamedTuple):
    """A finished run, and the state it ended with, seen in memory."""

    folder: Path
    config: TrainConfig
    states: list[Any]


def run_of(config: TrainConfig) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        steps = watched(patch)
        outcome = fit(config)
    assert outcome == (config.loop.steps, True)
    return Run(Path(config.out), config, steps.states)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCODER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All weights trained, validated with infills and samples; checkpoints of steps 2, 4, 5."""
    folder = tmp_path_factory.mktemp("whole")
    config = run_config(folder, steps=5, eval_every=5, eval_infills=2, eval_samples=1, keep=9)
    return run_of(config)


@pytest.fixture(scope="module")
def exported(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(whole.folder, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def adapted(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Adapters trained beside the weights of the run above."""
    config = run_config(tmp_path_factory.mktemp("adapted"), steps=6)
    return run_of(dataclasses.replace(config, model=str(exported), lora=LORA))


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def loaded(folder: Path) -> dict:
    return jax.tree.map(jnp.array, load_checkpoint(folder, dtype="float32")[1])


def difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max())


def test_the_weights_are_those_after_the_last_step(whole: Run, exported: Path) -> None:
    """Control: they are not those of the step before, nor those the run began with."""
    weights = loaded(exported)
    assert_bitwise_equal(weights, whole.states[-1].params)
    for other in (whole.states[-2], whole.states[0]):
        leaves, theirs = flat(weights), flat(other.params)
        assert all(not np.array_equal(leaves[name], theirs[name]) for name in leaves)


def test_the_folder_is_complete_and_the_run_untouched(
    whole: Run, exported: Path, tmp_path: Path
) -> None:
    before = hashes(whole.folder)
    again = export_run(whole.folder, tmp_path / "again")
    assert hashes(whole.folder) == before
    assert hashes(again) == hashes(exported)
    assert {path.name for path in exported.iterdir()} == {
        *("config.json", "generation_config.json", "jaxcoder_manifest.json", "README.md"),
        *("merges.txt", "model.safetensors", "special_tokens_map.json", "tokenizer.json"),
        *("tokenizer_config.json", "vocab.json"),
    }


def test_generator_loads_it(whole: Run, exported: Path) -> None:
    generator = Generator.from_pretrained(exported, dtype="float32")
    expected = full_logits(MODEL, jax.tree.map(jnp.array, whole.states[-1].params), TOKENS)
    assert difference(generator.logits(TOKENS), expected) < TOLERANCE
    assert len(generator.infill("def f(x):\n", "return x\n", max_new_tokens=4).tokens) <= 4


def test_its_card_says_where_it_comes_from(whole: Run, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert f"Base model: {whole.config.model}." in card
    assert f"Data: `{whole.config.data}`" in card
    assert '"peak_lr": 0.01' in card
    assert "| validation_loss |" in card
    assert "| infill_exact_match |" in card
    assert "## Licence" in card


def test_an_earlier_step_can_be_exported(whole: Run) -> None:
    """By default into the run."""
    folder = export_run(whole.folder, step=4)
    assert folder == whole.folder / "export-4"
    assert_bitwise_equal(loaded(folder), whole.states[4].params)
    assert "step 4 of 5" in (folder / "README.md").read_text()


def test_an_export_that_is_there_is_said_to_be(
    whole: Run, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run has exported by itself, and `export RUN` was an error."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in exported.iterdir()}
    assert cli.main(["export", str(whole.folder), str(exported)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{exported}\n"
    assert f"{exported}: holds this export of step 5 already" in said.err
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in exported.iterdir()}
    assert after == before


def _flip_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight": _flip_a_weight,
    "the card": lambda folder: (folder / "README.md").write_text("mine"),
    "the config": lambda folder: (folder / "config.json").write_text("{}"),
    "a file more": lambda folder: (folder / "notes.txt").touch(),
    "a file less": lambda folder: (folder / "merges.txt").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST_FILE).unlink(),
    "a manifest cut off": lambda folder: (folder / MANIFEST_FILE).write_text("{"),
    "a folder in a file's place": lambda folder: (
        (folder / "merges.txt").unlink(),
        (folder / "merges.txt").mkdir(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_is_not_quite_the_export_is_taken(
    change: str, whole: Run, exported: Path, tmp_path: Path
) -> None:
    """It is not written over, whatever its name."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    assert export_run(whole.folder, folder) == folder, "control: a copy is the export"
    CHANGES[change](folder)
    before = hashes(folder)
    with pytest.raises(CheckpointError, match="expected a new or an empty folder"):
        export_run(whole.folder, folder)
    assert hashes(folder) == before


def test_another_export_is_not_this_one(whole: Run, exported: Path, tmp_path: Path) -> None:
    """Of another step, of another type, and of a run with other figures."""
    before = hashes(exported)
    for arguments in ({"step": 4}, {"dtype": "bfloat16"}):
        with pytest.raises(CheckpointError, match="expected a new or an empty folder"):
            export_run(whole.folder, exported, **arguments)
    other = tmp_path / whole.folder.name
    shutil.copytree(whole.folder, other)
    metrics = other / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    with pytest.raises(CheckpointError, match="expected a new or an empty folder"):
        export_run(other, exported)
    assert hashes(exported) == before


def test_a_narrow_type_rounds_once(whole: Run, tmp_path: Path) -> None:
    folder = export_run(whole.folder, tmp_path / "narrow", dtype="bfloat16")
    _, params = load_checkpoint(folder)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole.states[-1].params)
    assert_bitwise_equal(params, rounded)


def test_a_step_without_a_checkpoint_is_refused(whole: Run, tmp_path: Path) -> None:
    """With the steps that have one."""
    for step in (3, 99, -1):
        with pytest.raises(CheckpointError) as caught:
            export_run(whole.folder, tmp_path / "none", step=step)
        assert f"no checkpoint of step {step}, expected one of 2, 4, 5" in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_run_that_lost_its_tokenizer_is_left_as_it_is(whole: Run, tmp_path: Path) -> None:
    """An export took the model's of today over, or trained another."""
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").unlink()
    before = hashes(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run/tokenizer\.json: no such file"):
        export_run(tmp_path / "run", tmp_path / "model")
    assert hashes(tmp_path / "run") == before


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        watched(patch, cut_before=1)
        fit(config)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export_run(Path(config.out))
    with pytest.raises(ConfigError, match="no run there"):
        export_run(tmp_path)


@pytest.mark.parity
def test_transformers_loads_it(whole: Run, exported: Path) -> None:
    """No key is missing or unexpected, and the logits are ours."""
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    with torch.inference_mode():
        theirs = model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    ours = full_logits(MODEL, loaded(exported), TOKENS)
    assert difference(ours, theirs) < TOLERANCE
    untrained = full_logits(MODEL, jax.tree.map(jnp.array, whole.states[0].params), TOKENS)
    assert difference(untrained, theirs) > 100 * TOLERANCE


@pytest.mark.parity
def test_auto_tokenizer_gives_the_ids_trained_on(whole: Run, exported: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(exported, local_files_only=True)
    ours = Generator.from_pretrained(exported).tokenizer
    texts = [
        "def f(x12):\n    return 345\n",
        "é 日本 🙂\r\n\t",
        "<fim_prefix>a<fim_suffix>b<fim_middle>",
    ]
    for text in [*texts, *(path.read_text() for path in Path(whole.config.data).iterdir())]:
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)


def test_adapters_leave_the_base_model_bitwise(adapted: Run, exported: Path) -> None:
    """In the state, from the first step to the last, and on disk; the adapters do move."""
    base = loaded(exported)
    for state in adapted.states:
        assert_bitwise_equal(state.frozen, base)
    first, last = flat(adapted.states[0].params), flat(adapted.states[-1].params)
    assert all(not np.array_equal(first[name], last[name]) for name in first)
    assert_bitwise_equal(loaded(Path(adapted.config.model)), base)


def adapter_logits(state: Any, *, scale: float) -> np.ndarray:
    """Logits of `TOKENS` with each adapter beside its weight, W x + scale · B (A x)."""
    adapters, by_weight = flat(state.params), {}
    for name, leaf in flat(state.frozen).items():
        path = name.removesuffix("/weight")
        if f"{path}/a" in adapters:
            by_weight[leaf.tobytes()] = (adapters[f"{path}/a"], adapters[f"{path}/b"])
    plain, used = layers.weight_product, []

    def beside(
        x: jax.Array, weight: jax.Array, dtype: jnp.dtype, bias: jax.Array | None = None
    ) -> jax.Array:
        out = plain(x, weight, dtype, bias)
        if (adapter := by_weight.get(np.asarray(weight).tobytes())) is None:
            return out
        used.append(weight.shape)
        a, b = adapter
        return out + scale * plain(plain(x, a, dtype), b, dtype)

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(layers, "weight_product", beside)
        logits = full_logits(MODEL, jax.tree.map(jnp.array, state.frozen), TOKENS)
    assert len(used) == len(by_weight) == len(LORA.targets) * MODEL.n_layer
    return logits


def test_the_merged_export_computes_what_the_adapters_do(adapted: Run, tmp_path: Path) -> None:
    """Control: another scale than alpha / rank, and the base model alone, compute other logits."""
    folder = export_run(adapted.folder, tmp_path / "merged")
    merged = Generator.from_pretrained(folder, dtype="float32").logits(TOKENS)
    expected = adapter_logits(adapted.states[-1], scale=LORA.alpha / LORA.rank)
    assert difference(merged, expected) < TOLERANCE
    for scale in (0.5 * LORA.alpha / LORA.rank, 0.0):
        other = adapter_logits(adapted.states[-1], scale=scale)
        assert difference(merged, other) > 10 * TOLERANCE
    assert ModelConfig.from_file(folder / "config.json") == MODEL


def test_adapters_resume_where_they_were(adapted: Run, tmp_path: Path) -> None:
    """Cut off between two checkpoints, gone on with: each later state and loss is bitwise equal."""
    config = dataclasses.replace(adapted.config, out=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        watched(patch, cut_before=3)
        fit(config)
    with pytest.MonkeyPatch.context() as patch:
        steps = watched(patch)
        assert fit(config) == (6, True)
    assert len(steps.states) == 1 + 4, "on from the checkpoint of step 2"
    for resumed, uninterrupted in zip(steps.states, adapted.states[2:], strict=True):
        assert_bitwise_equal(resumed, uninterrupted)
    assert losses(tmp_path / "run") == losses(adapted.folder)


def losses(run: Path) -> list[tuple[int, float]]:
    lines = read_json_lines(run / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_adapters_wider_than_a_weight_are_refused(tmp_path: Path) -> None:
    """Known when the model's shape is; nothing of the run is kept, and the model is as it was."""
    config = dataclasses.replace(run_config(tmp_path), lora=LoraConfig(rank=17))
    before = hashes(tmp_path / "model")
    with pytest.raises(ConfigError, match="rank is 17, expected 0 to 16"):
        fit(config)
    assert hashes(tmp_path / "model") == before
