"""The settings of a training run: frozen dataclasses, checked together.

The command line (`python -m train PRESET --optimizer.peak-lr 1e-4`) is generated from these
classes, so a field's docstring is its help text.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ShapeConfig:
    """Sizes of a model trained from scratch with a tokenizer of its own."""

    vocab_size: int = 4096
    """Entries of the tokenizer, trained on the data; rows of the embedding (V)."""
    n_positions: int = 1024
    """Longest sequence the model can take."""
    n_embd: int = 256
    """Width of the residual stream (D)."""
    n_layer: int = 6
    """Blocks."""
    n_head: int = 4
    """Query heads (N); one key/value head is shared by all."""
    dropout: float = 0.0
    """Rate of all three dropouts while training."""


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from and which of them are taken."""

    globs: tuple[str, ...] = ("**/*.py",)
    """Files of a folder to read."""
    exclude: tuple[str, ...] = ()
    """Globs of files to leave out."""
    field: str = "content"
    """The text's field in JSONL and Hugging Face data."""
    hf_data_dir: str | None = None
    """Hugging Face data: the folder inside the data set, such as "python"."""
    hf_split: str = "train"
    """Hugging Face data: the split."""
    max_line_chars: int = 2000
    """Documents with a longer line are counted and left out: generated or binary, mostly."""
    error_budget: float = 0.1
    """Share of unreadable documents above which preparation stops."""
    headers: bool = False
    """Put <reponame> and <filename> headers before documents, as in StarCoder's pretraining."""
    human_eval: str | None = None
    """HumanEval.jsonl.gz, to count documents that hold its texts; none is left out for it."""
    validation_share: float = 0.02
    """Share of documents, chosen by the hash of their content, held out for validation."""


@dataclass(frozen=True)
class FimConfig:
    """Fill-in-the-middle; see fim.py."""

    rate: float = 0.5
    """Share of pieces that are permuted."""
    spm_rate: float = 0.5
    """Of the permuted ones, the share with the suffix first."""
    level: Literal["context", "document"] = "context"
    """Permute each piece of a document by itself, or the whole document before it is split."""
    cut: Literal["character", "token"] = "character"
    """Where cuts may fall: character cuts are BigCode's, token cuts are faster."""
    line_rate: float = 0.0
    """Of the permuted ones, the share whose middle is one line, not the first; character cuts."""


@dataclass(frozen=True)
class BatchConfig:
    """The shape of a step's batch and what its loss counts."""

    size: int = 8
    """Rows of a step, over all accumulation steps (B)."""
    seq_len: int = 1024
    """Tokens a row predicts (T)."""
    accumulation: int = 1
    """Parts the batch is computed in, one after the other, to save memory."""
    documents: Literal["separate", "joined"] = "separate"
    """Attention and positions start anew at each document, or run on as in BigCode's training."""
    loss: Literal["all", "middle"] = "all"
    """Tokens that count: all of them, or the middles of permuted pieces alone."""
    middle_weight: float = 1.0
    """How much a token of a middle counts in the mean, others count 1."""
    piece_tokens: tuple[int, ...] = ()
    """Shortest and longest piece, lengths drawn between; none, or fim.rate 0: as long as a row."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    peak_lr: float = 1e-4
    """Learning rate after warm-up."""
    final_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of weights with two or more dimensions."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together."""
    z_loss: float = 0.0
    """Weight of the squared log normaliser; 0: off."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen weights; see lora.py."""

    rank: int = 0
    """Rank of the adapters; 0: train all weights."""
    alpha: float = 32.0
    """The adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("attn/q", "attn/kv", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
    """Products that get an adapter, in every block."""


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; none of it changes what is computed, up to rounding."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the operands of products; auto: bfloat16 where the device has it."""
    remat: Literal["none", "block"] = "none"
    """What the backward pass computes again instead of keeping: nothing, or each block."""
    loss_chunk: int = 512
    """Tokens whose logits are held at once."""
    prefetch_threads: int = 2
    """Threads that prepare batches; 0: prepare each when it is needed."""


@dataclass(frozen=True)
class LoopConfig:
    """Length of the run, and what happens between steps."""

    steps: int = 1000
    """Optimizer steps."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 250
    """Steps between validations; there is one before the first step and one after the last."""
    eval_batches: int = 16
    """Batches of a validation."""
    eval_infills: int = 32
    """Held-out lines infilled by a validation; 0: none, and so where fim.rate is 0."""
    eval_samples: int = 2
    """Completions logged by a validation; 0: none."""
    save_every: int = 250
    """Steps between checkpoints; the last step is saved always."""
    keep: int = 2
    """Checkpoints kept."""
    max_bad_steps: int = 5
    """Stop after this many steps in a row whose loss or gradients are not finite."""
    tensorboard: bool = False
    """Write TensorBoard files too."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
      ConfigError: from `check`, listing all mistakes at once.
    """

    data: str = ""
    """Folder, .jsonl or .jsonl.gz file, hf:NAME of a Hugging Face data set, or stdlib."""
    out: str = ""
    """Folder of the run: checkpoints, metrics, the resolved config."""
    model: str = ""
    """Checkpoint folder or Hub repo id to start from; empty: a new model of the given shape."""
    revision: str | None = None
    """Commit or branch of a Hub model."""
    fresh: bool = False
    """Take config and tokenizer of the model, but new weights."""
    preset: str = ""
    """Name of the preset the settings started from."""
    seed: int = 0
    """Of weights, data order, cuts and dropout."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    fim: FimConfig = field(default_factory=FimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
