"""The options that several commands of ``jaxcoder`` share."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from .arguments import check_count, check_stop
from .devices import default_device
from .generator import Generator
from .sampling import sampling_params


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and in which dtype."""

    model: str | None = None
    """A local folder or a Hub id such as bigcode/tiny_starcoder_py; by default the small demo model
    inside the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on TPUs and recent GPUs, else float32."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    local_files_only: bool = False
    """Use what the Hub's cache holds; never the network."""

    def load(self) -> Generator:
        """The model, loaded."""
        default_device()  # JAX's own error for a platform it cannot start is a traceback
        return Generator.from_pretrained(
            self.model,
            dtype=self.dtype,
            revision=self.revision,
            local_files_only=self.local_files_only,
        )


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn."""

    max_new_tokens: int = 128
    """At most this many new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens with this probability together."""
    repetition_penalty: float = 1.0
    """Above 1: make tokens already seen less likely."""
    seed: int = 0
    """Same seed, same text."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End the text before this string."""
    n: int = 1
    """Completions to draw; several need --json, and a temperature above 0."""

    def arguments(self) -> dict[str, Any]:
        """What one completion is drawn with: all but n."""
        return {name: value for name, value in vars(self).items() if name != "n"}

    def check(self, *, as_json: bool) -> None:
        """Refuse values out of range before a model is fetched and loaded."""
        if check_count("n", self.n, least=1) > 1 and not as_json:
            raise ValueError(f"n is {self.n}, and several completions need --json; add it")
        check_count("max_new_tokens", self.max_new_tokens, least=0)
        check_stop(self.stop)
        sampling_params(
            1,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


# Without a prefix: --model and not --model.model.
Model = Annotated[ModelOptions, tyro.conf.arg(name="")]
Sampling = Annotated[SamplingOptions, tyro.conf.arg(name="")]

# Frozen, so that one of each can be every command's default.
DEFAULT_MODEL = ModelOptions()
DEFAULT_SAMPLING = SamplingOptions()
