"""Named starting points of a run. Each docstring gives its command, its time and its outcome."""

from collections.abc import Callable

from .config import (
    BatchConfig,
    ComputeConfig,
    FimConfig,
    LoopConfig,
    OptimizerConfig,
    ShapeConfig,
    SourceConfig,
    TrainConfig,
)


def smoke() -> TrainConfig:
    """A model of forty thousand weights, to see the machinery run.

    Seconds on a CPU, most of them compiling; the loss goes from 6.7 to 5.6 nats per token.

    Command: python -m train smoke --out runs/smoke
    """
    return TrainConfig(
        preset="smoke",
        data="stdlib",
        source=SourceConfig(
            globs=("json/*.py", "email/*.py", "logging/*.py"), validation_share=0.2
        ),
        shape=ShapeConfig(vocab_size=512, n_positions=128, n_embd=32, n_layer=2, n_head=2),
        batch=BatchConfig(size=4, seq_len=128),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=5),
        loop=LoopConfig(
            steps=40, eval_every=20, save_every=20, eval_batches=2, eval_infills=4, eval_samples=1
        ),
    )


def stdlib() -> TrainConfig:
    """The demo model's first run: a small Python model with a tokenizer of its own.

    8,500 steps of 4,096 tokens; two CPU cores take 1.75 hours. The validation loss goes to 2.45
    nats per token, 1.04 bits per byte. A second run of 6,500 steps with more infilling, whose
    command is in the model's card, takes it to 2.33 in an hour.

    Command: python -m train stdlib --data CORPUS/train --out runs/demo
    """
    return TrainConfig(
        preset="stdlib",
        data="stdlib",
        source=SourceConfig(validation_share=0.01),
        shape=ShapeConfig(vocab_size=4096, n_positions=512, n_embd=256, n_layer=4, n_head=4),
        # More often prefix first than BigCode's half: that is how `infill` asks by default.
        # And half of the middles are single lines, which BigCode's cuts hardly ever leave out.
        fim=FimConfig(rate=0.5, spm_rate=0.3, line_rate=0.5),
        batch=BatchConfig(size=8, seq_len=512),
        optimizer=OptimizerConfig(peak_lr=3e-3, final_lr_ratio=0.02, warmup_steps=200),
        # On CPU too: with matrix instructions for it, 6,900 tokens a second, not float32's 5,600.
        compute=ComputeConfig(dtype="bfloat16"),
        # All checkpoints stay: the model's card compares lengths of training.
        loop=LoopConfig(
            steps=8_500,
            eval_every=1000,
            save_every=250,
            keep=40,
            eval_batches=16,
            eval_infills=64,
        ),
    )


def finetune() -> TrainConfig:
    """Fine-tune a checkpoint on your own code.

    1,000 steps of 16,384 tokens, made for an accelerator: a 164M step computes 1.1 GFLOP a token.
    Where the loss ends depends on how near the code is to what the model has seen; look at the
    validation of step 0 in metrics.jsonl. Not yet run with the published weights.

    Command: python -m train finetune --model bigcode/tiny_starcoder_py --data FOLDER --out RUN
    """
    return TrainConfig(
        preset="finetune",
        model="bigcode/tiny_starcoder_py",
        # Of many lengths: where a middle begins shall not tell where it ends, see docs/fim.md.
        batch=BatchConfig(size=8, seq_len=2048, accumulation=4, piece_tokens=(32, 2048)),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=50),
        compute=ComputeConfig(remat="block"),
        loop=LoopConfig(steps=1000),
    )


def tiny_starcoder() -> TrainConfig:
    """The published shape and, as far as it is known, the published schedule, from scratch.

    50,000 steps of 2.1 M tokens (256 x 8,192), bfloat16; the learning rate is that of the nearest
    documented sibling (RaymondLi/sc2-1b-data-ablation), TinyStarCoderPy's own is unpublished.
    32 A100 took 18 hours, says its model card; the final loss is unpublished. Not yet run.

    Command: python -m train tiny_starcoder --data hf:bigcode/starcoderdata --out RUN
    """
    return TrainConfig(
        preset="tiny_starcoder",
        model="bigcode/tiny_starcoder_py",
        fresh=True,
        data="hf:bigcode/starcoderdata",
        source=SourceConfig(hf_data_dir="python", headers=True, validation_share=0.001),
        fim=FimConfig(rate=0.5, spm_rate=0.5),
        batch=BatchConfig(size=256, seq_len=8192, accumulation=256, documents="joined"),
        optimizer=OptimizerConfig(peak_lr=4e-4, final_lr_ratio=0.1, warmup_steps=1000),
        compute=ComputeConfig(dtype="bfloat16", remat="block"),
        loop=LoopConfig(steps=50_000, eval_every=1000, save_every=1000, keep=3),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset for preset in (smoke, stdlib, finetune, tiny_starcoder)
}
