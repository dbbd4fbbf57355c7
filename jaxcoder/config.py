"""`ModelConfig`: the shape of a GPT-BigCode or GPT-2 model, read from Hugging Face's config.json.

Every field that changes a number is honoured or refused by name; a field we do not know is warned
about with the nearest name we do. This module knows neither JAX nor weights.

Source of names and defaults: transformers, ``GPTBigCodeConfig`` and ``GPT2Config``.
"""

import dataclasses
import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .json_file import read_json_object
from .problems import shorten

TANH_GELUS = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
"""Three names of one formula: 0.5x(1 + tanh(sqrt(2/pi)(x + 0.044715x^3)))."""

ACTIVATIONS = (*TANH_GELUS, "gelu")

_ARCHITECTURES = {
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeLMHeadModel", "GPTBigCodeModel"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
}

# Far above every published model; it turns a corrupt size into an error instead of an allocation.
_MAX_SIZE = {
    "vocab_size": 1 << 24,
    "n_positions": 1 << 21,
    "n_embd": 1 << 17,
    "n_inner": 1 << 20,
    "n_layer": 1 << 12,
    "n_head": 1 << 12,
}

_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}

# Without effect on the numbers of inference or training here.
_IGNORED = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype use_cache _name_or_path
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 reorder_and_upcast_attn
    attention_type attention_head_type num_key_value_heads head_dim
    inference_runner validate_runner_input pre_allocate_kv_cache pad_key_length
    max_sequence_length max_batch_size runner_max_sequence_length
    summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout
    output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size
    pruned_heads tie_encoder_decoder torchscript use_bfloat16 tf_legacy_loss
    task_specific_params problem_type finetuning_task id2label label2id num_labels
    tokenizer_class prefix sep_token_id decoder_start_token_id attn_implementation
    _attn_implementation _attn_implementation_autoset _commit_hash gradient_checkpointing
    max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()  # noqa: SIM905 (a list literal would be a line for each name)
)

# Finding the nearest known name takes about a millisecond, and a file may hold 100,000 others.
_MOST_WARNINGS = 20

_CODE_FIELDS = ("auto_map", "custom_pipelines", "trust_remote_code")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices that define the model; hashable, so it can be a static jit argument.

    Args:
      vocab_size: rows of the token embedding (V).
      n_positions: rows of the learned position embedding; a hard limit on sequence length.
      n_embd: width of the residual stream (D).
      n_layer: number of blocks.
      n_head: query heads (N); ``n_embd // n_head`` is the head dimension (H).
      n_inner: width of the MLP (F).
      multi_query: one key/value head shared by all query heads, else one for each.
      activation_function: one of `ACTIVATIONS`; three of them are one tanh formula.
      layer_norm_epsilon: added to the variance in every LayerNorm.
      scale_attn_weights: divide scores by sqrt(H).
      scale_attn_by_inverse_layer_idx: GPT-2 only: divide the scores of layer i by i + 1 too.
      tie_word_embeddings: the output head is the token embedding.
      embd_pdrop, attn_pdrop, resid_pdrop: dropout rates, active in training only.
      initializer_range: standard deviation of a fresh weight.
      bos_token_id, pad_token_id: special ids, or None.
      eos_token_ids: ids that end a text; may be empty. Id 0 is a valid one.
      model_type: "gpt_bigcode" or "gpt2"; decides the layout of the weights on disk.

    Raises:
      ConfigError: a value out of range or not of its type; all problems are listed at once.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    multi_query: bool = True
    activation_function: str = "gelu_pytorch_tanh"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    model_type: str = "gpt_bigcode"

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise ConfigError("config: " + "; ".join(problems[:20] + more))

    @property
    def head_dim(self) -> int:
        """H, the width of one head."""
        return self.n_embd // self.n_head

    @property
    def n_kv_head(self) -> int:
        """K, the number of key/value heads: 1 with multi-query attention."""
        return 1 if self.multi_query else self.n_head

    def attention_scale(self, layer: int) -> float:
        """The factor that layer `layer` (from 0) applies to q·k."""
        scale = 1 / math.sqrt(self.head_dim) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def tiny_starcoder(cls) -> "ModelConfig":
        """The shape of bigcode/tiny_starcoder_py: 164,144,128 parameters."""
        return cls(
            vocab_size=49152,
            n_positions=8192,
            n_embd=768,
            n_layer=20,
            n_head=12,
            n_inner=3072,
            bos_token_id=0,
            eos_token_ids=(0,),
        )

    @classmethod
    def from_hf_config(
        cls, fields: Mapping[str, Any], *, source: str = "config.json"
    ) -> "ModelConfig":
        """Read the fields of a Hugging Face config; `source` names them in errors.

        Raises:
          ConfigError: a model we do not implement, or values out of range (all listed).
        """
        model_type = fields.get("model_type")
        if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
            raise ConfigError(f"{source}: {_refusal(model_type)}")
        _check_architecture(fields, model_type, source)
        _refuse_unsupported(fields, model_type, source)
        _warn_unknown(fields, source)

        merged = _merge_aliases(fields, source)
        values = _DEFAULTS[model_type] | {
            name: merged[name] for name in _FIELD_NAMES if name in merged
        }
        if values.get("n_inner") is None:
            n_embd = values["n_embd"]
            values["n_inner"] = 4 * n_embd if type(n_embd) is int and n_embd > 0 else 1
        if values["layer_norm_epsilon"] is None:  # so in a published copy of starcoderbase-3b
            values["layer_norm_epsilon"] = 1e-5
        eos = merged.get("eos_token_id", values.pop("eos_token_id"))
        values["eos_token_ids"] = _id_tuple(eos)
        try:
            return cls(**values, model_type=model_type)
        except ConfigError as exc:
            raise ConfigError(f"{source}: {str(exc).removeprefix('config: ')}") from None

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Read ``config.json``; see `from_hf_config`."""
        return cls.from_hf_config(read_json_object(path, error=ConfigError), source=str(path))

    def to_hf_config(self) -> dict[str, Any]:
        """The fields transformers reads; `from_hf_config` of them gives this config again."""
        fields = dataclasses.asdict(self)
        eos = fields.pop("eos_token_ids")
        fields["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
        if self.model_type == "gpt2":
            del fields["multi_query"]
        else:
            del fields["scale_attn_by_inverse_layer_idx"]
        return fields | {"architectures": [_ARCHITECTURES[self.model_type][0]]}


_FIELD_NAMES = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("model_type", "eos_token_ids")
)

_SHARED_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_DEFAULTS = {
    "gpt_bigcode": _SHARED_DEFAULTS
    | {"multi_query": True, "activation_function": "gelu_pytorch_tanh"},
    "gpt2": _SHARED_DEFAULTS | {"multi_query": False, "activation_function": "gelu_new"},
}


def _problems(config: ModelConfig) -> list[str]:
    problems = [
        f"{name} is {shorten(value)}, expected an integer from 1 to {limit}"
        for name, limit in _MAX_SIZE.items()
        if type(value := getattr(config, name)) is not int or not 1 <= value <= limit
    ]
    sizes_valid = not problems
    if sizes_valid and config.n_embd % config.n_head:
        problems.append(
            f"n_embd is {config.n_embd} and n_head {config.n_head}; n_head must divide n_embd"
        )
    for name in (
        "multi_query",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings",
    ):
        if type(value := getattr(config, name)) is not bool:
            problems.append(f"{name} is {shorten(value)}, expected true or false")
    if config.activation_function not in ACTIVATIONS:
        problems.append(
            f"activation_function is {shorten(config.activation_function)}, "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    epsilon = config.layer_norm_epsilon
    if not _is_number(epsilon) or not 0 < epsilon < 1:
        problems.append(
            f"layer_norm_epsilon is {shorten(epsilon)}, expected a number above 0 and below 1"
        )
    for name in ("initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
        if not _is_number(value := getattr(config, name)) or not 0 <= value < 1:
            problems.append(
                f"{name} is {shorten(value)}, expected a number from 0 up to, not including, 1"
            )
    if sizes_valid:
        special = [("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)]
        special += [("eos_token_id", token) for token in config.eos_token_ids]
        problems += [
            f"{name} is {shorten(value)}, expected an id below vocab_size {config.vocab_size}"
            for name, value in special
            if value is not None and (type(value) is not int or not 0 <= value < config.vocab_size)
        ]
    if config.model_type == "gpt2" and config.multi_query:
        problems.append("multi_query is true, but model_type gpt2 has one key/value head per head")
    if config.model_type != "gpt2" and config.scale_attn_by_inverse_layer_idx:
        problems.append("scale_attn_by_inverse_layer_idx is true, but only model_type gpt2 has it")
    return problems


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _id_tuple(eos: object) -> tuple[Any, ...]:
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _refusal(model_type: object) -> str:
    known = {
        "starcoder2": "StarCoder2 (rotary positions, grouped-query attention)",
        "llama": "Llama (rotary positions, RMSNorm, gated MLP)",
        "gpt_neox": "GPT-NeoX (rotary positions)",
        "codegen": "CodeGen (rotary positions)",
    }
    expected = "expected gpt_bigcode or gpt2"
    if model_type is None:
        return f"model_type is missing, {expected}"
    name = known.get(model_type) if isinstance(model_type, str) else None
    described = f", that is {name}" if name else ""
    return f"model_type is {shorten(model_type)}{described}: another architecture; {expected}"


def _check_architecture(fields: Mapping[str, Any], model_type: str, source: str) -> None:
    architectures = fields.get("architectures") or []
    if not isinstance(architectures, list):
        raise ConfigError(
            f"{source}: architectures is {shorten(architectures)}, expected a list of names"
        )
    for name in architectures:
        if name == "GPT2LMHeadCustomModel":
            raise ConfigError(
                f"{source}: architectures is {name!r}, the original SantaCoder layout; "
                "run `python -m conversion convert SRC DST` first"
            )
        if name not in _ARCHITECTURES[model_type]:
            raise ConfigError(
                f"{source}: architectures names {shorten(name)} beside model_type {model_type!r}; "
                f"expected one of {', '.join(_ARCHITECTURES[model_type])}"
            )


def _refuse_unsupported(fields: Mapping[str, Any], model_type: str, source: str) -> None:
    refused = []
    if fields.get("add_cross_attention"):
        refused.append("add_cross_attention is true: encoder-decoder attention")
    if fields.get("use_rotary_embeddings"):
        refused.append("use_rotary_embeddings is true: rotary positions")
    if fields.get("use_position_embeddings", True) is not True:
        refused.append("use_position_embeddings is not true: no learned positions")
    multi_query = fields.get("multi_query", model_type == "gpt_bigcode")
    attention_type = fields.get("attention_type")
    if attention_type is not None and (attention_type, multi_query) not in ((1, False), (2, True)):
        refused.append(
            f"attention_type is {shorten(attention_type)} beside multi_query "
            f"{shorten(multi_query)}; expected 1 with false or 2 with true"
        )
    if model_type == "gpt2" and fields.get("attention_head_type") == "multiquery":
        refused.append(
            "attention_head_type is 'multiquery', the original SantaCoder layout; "
            "run `python -m conversion convert SRC DST` first"
        )
    if refused:
        raise ConfigError(f"{source}: not implemented: " + "; ".join(refused))


def _warn_unknown(fields: Mapping[str, Any], source: str) -> None:
    for name in _CODE_FIELDS:
        if fields.get(name):
            warnings.warn(
                f"{source}: {name} is ignored: model-folder code is never run", stacklevel=4
            )
    known = {
        *_FIELD_NAMES,
        *_ALIASES,
        *_IGNORED,
        *_CODE_FIELDS,
        "eos_token_id",
        "add_cross_attention",
        "use_rotary_embeddings",
        "use_position_embeddings",
    }
    unknown = sorted(set(fields) - known)
    for name in unknown[:_MOST_WARNINGS]:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        warnings.warn(f"{source}: unknown field {shorten(name)} is ignored{hint}", stacklevel=4)
    if len(unknown) > _MOST_WARNINGS:
        more = len(unknown) - _MOST_WARNINGS
        warnings.warn(f"{source}: {more} more unknown fields are ignored", stacklevel=4)


def _merge_aliases(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    merged = dict(fields)
    for alias, name in _ALIASES.items():
        if alias not in merged:
            continue
        value = merged.pop(alias)
        if merged.setdefault(name, value) != value:
            raise ConfigError(
                f"{source}: {name} is {merged[name]!r} but its alias {alias} {shorten(value)}"
            )
    return merged
