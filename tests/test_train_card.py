"""The card of an exported model: its origin, its data, its figures, and the licence it is under."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxcoder.config import ModelConfig
from train.card import model_card
from train.config import OptimizerConfig, TrainConfig
from train.run_folder import METRICS_FILE, config_fields

MODEL = ModelConfig(vocab_size=288, n_positions=96, n_embd=32, n_layer=2, n_head=4, n_inner=64)
CONFIG = TrainConfig(
    preset="finetune",
    data="some/code",
    model="some/model",
    out="run",
    optimizer=OptimizerConfig(peak_lr=1.25e-3),
)
TERMS = "BigCode OpenRAIL-M"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with what the card reads of it."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    fields = {"config": config_fields(CONFIG), "versions": {"jax": "1.2.3", "grain": None}}
    (folder / "config.json").write_text(json.dumps(fields | {"git_commit": "abc123"}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a base model, without a README.md."""
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


def card_of(run: Path, base: Path | None, *, config: TrainConfig = CONFIG, step: int = 20) -> str:
    return model_card(run, config, MODEL, step=step, base=base)


def field_of(card: str) -> str | None:
    """The licence in the card's header, which is what the Hub shows."""
    header = card.split("---\n")[1]
    found = [line for line in header.splitlines() if line.startswith("license:")]
    assert len(found) <= 1
    return found[0].removeprefix("license: ") if found else None


def licence_of(card: str) -> str:
    return card.split("## Licence\n\n")[1].split("\n")[0]


def test_it_names_base_data_settings_and_versions(run: Path, base: Path) -> None:
    card = card_of(run, base, config=dataclasses.replace(CONFIG, revision="main"))
    assert "Base model: some/model at main." in card
    assert "Data: `some/code`" in card
    assert "# my-run: step 20 of 1000" in card
    assert "python -m train finetune" in card
    assert "commit abc123; jax 1.2.3)" in card
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings["optimizer"]["peak_lr"] == 1.25e-3
    assert settings == config_fields(dataclasses.replace(CONFIG, revision="main"))
    assert "2 layers, 32 wide, 4 heads, vocabulary 288, 96 positions" in card


def test_derivatives_of_the_published_weights_stay_under_their_licence(
    run: Path, base: Path
) -> None:
    """Whatever the run's own data are, and wherever the Hub's cache has put them."""
    config = dataclasses.replace(CONFIG, model="bigcode/tiny_starcoder_py")
    card = card_of(run, base, config=config)
    assert field_of(card) == "bigcode-openrail-m"
    assert licence_of(card).startswith(TERMS)


def test_the_licence_is_handed_on_from_card_to_card(run: Path, base: Path) -> None:
    """A local folder made from the published weights says so in the card written into it."""
    published = dataclasses.replace(CONFIG, model="bigcode/tiny_starcoder_py")
    (base / "README.md").write_text(card_of(run, base, config=published))
    card = card_of(run, base, config=dataclasses.replace(CONFIG, model=str(base)))
    assert field_of(card) == "bigcode-openrail-m"
    assert licence_of(card).startswith(TERMS)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [code]\n---\n# Model\n", "apache-2.0"),
        ('---\r\ntags:\r\n- code\r\nlicense: "mit"  # the code too\r\n---\r\n', "mit"),
        ("---\ntags: [code]\n---\nlicense: mit\n", None),
        ("# Model\n\nlicense: mit\n\n---\n", None),
        ("---\nlicense:\n- mit\n---\n", None),
        ("", None),
    ],
)
def test_another_base_model_declares_its_own(
    run: Path, base: Path, readme: str, licence: str | None
) -> None:
    """Only the header of its README.md counts; a base that declares none is said to."""
    (base / "README.md").write_bytes(readme.encode())
    card = card_of(run, base)
    assert field_of(card) == licence
    if licence:
        assert licence_of(card).startswith(f"{licence}, which the README.md of the base model")
        assert TERMS not in card
    else:
        assert "whose folder declares none" in licence_of(card)
        assert TERMS in licence_of(card)


def test_a_readme_that_is_not_text_declares_nothing(run: Path, base: Path) -> None:
    (base / "README.md").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert field_of(card_of(run, base)) is None


def test_fresh_weights_are_under_no_models_licence(run: Path) -> None:
    """Also where shape and tokenizer are those of a published model."""
    card = card_of(run, None, config=dataclasses.replace(CONFIG, model=""))
    assert "Base model: none, trained from scratch." in card
    assert field_of(card) is None
    assert "Trained from scratch" in licence_of(card)
    config = dataclasses.replace(
        CONFIG, model="bigcode/tiny_starcoder_py", fresh=True, revision="main"
    )
    card = card_of(run, None, config=config)
    expected = "in the shape and with the tokenizer of bigcode/tiny_starcoder_py at main."
    assert f"Base model: none, trained from scratch, {expected}" in card
    assert field_of(card) is None


def test_figures_are_the_last_up_to_the_step(run: Path, base: Path) -> None:
    """A loss that was not finite is none; what came after the exported step is not shown."""
    lines = [
        {"step": 0, "validation_loss": 6.0, "bits_per_byte": 4.0},
        {"step": 10, "loss": 5.5},
        {"step": 20, "loss": 5.25},
        {"step": 20, "validation_loss": 5.0, "bits_per_byte": 3.5},
        {"step": 20, "loss": None},
        {"step": 30, "loss": 1.0, "validation_loss": 1.0},
    ]
    (run / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = card_of(run, base)
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| validation_loss | 5.0 | 20 |",
        "| bits_per_byte | 3.5 | 20 |",
        "| loss | 5.25 | 20 |",
    ]


def test_a_run_without_metrics_has_a_card(run: Path, base: Path) -> None:
    rows = [line for line in card_of(run, base).splitlines() if line.startswith("| ")]
    assert rows == ["| measure | value | step |"]
