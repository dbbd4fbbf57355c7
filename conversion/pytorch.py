"""The other side of the proof: the same checkpoint in transformers, and what it computes.

The only file of verify that imports torch, inside its functions, so that the rest reads without.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcoder.config import ModelConfig

BROKEN_ATTENTION = ("4.54.0", "4.54.1", "4.55.0")
"""transformers releases that scale GPT-BigCode's scores by sqrt(H), not 1/sqrt(H) (PR 40041)."""


class TorchForward(NamedTuple):
    """What one forward pass of the PyTorch model gave, as float64 arrays."""

    logits: np.ndarray
    """[T, V]"""
    residuals: list[np.ndarray]
    """n_layer + 2 arrays [T, D]: the embedding, the stream after each block, the final norm."""


def require() -> None:
    """Refuse at once what would stop the proof after minutes.

    Raises:
      ValueError: torch or transformers is missing, or a release known to be wrong.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as exc:
        raise ValueError(
            f"verify compares with PyTorch, but {exc.name} is not installed: install a CPU build "
            'of torch, then pip install "transformers>=4.57,<6"'
        ) from exc
    if transformers.__version__ in BROKEN_ATTENTION:
        raise ValueError(
            f"transformers {transformers.__version__} computes this attention wrongly; "
            "install 4.55.1 or later"
        )


def load(folder: Path, dtype: str, device: str = "cpu") -> Any:
    """The checkpoint in `folder` as transformers loads it.

    Args:
      folder: what transformers reads.
      dtype: "float64", "float32" or "bfloat16".
      device: "cpu", or "cuda" where torch has it.

    Raises:
      ValueError: torch or transformers is missing, or a release known to be wrong; another device.
    """
    require()
    import torch
    import transformers

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(
            f"torch_device is {device!r}, expected 'cpu', or 'cuda' where torch has it"
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Its eager attention takes the softmax in float32 even in a float64 model.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        local_files_only=True,
    )
    # Penalties or forced tokens that a folder asks for would not be the model's numbers.
    model.generation_config = transformers.GenerationConfig()
    return model.to(device).eval()


def forward(model: Any, tokens: np.ndarray) -> TorchForward:
    """Run `tokens` [T], with every residual recorded."""
    import torch

    residuals: list[np.ndarray] = []

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        residuals.append(_to_numpy(stream)[0])

    body = model.transformer
    hooks = [module.register_forward_hook(record) for module in (body.drop, *body.h, body.ln_f)]
    ids = torch.as_tensor(np.asarray(tokens)[None], device=model.device)
    try:
        with torch.inference_mode():
            logits = model(
                ids, position_ids=torch.arange(ids.shape[1], device=ids.device)[None]
            ).logits
    finally:
        for hook in hooks:
            hook.remove()
    return TorchForward(_to_numpy(logits)[0], residuals)


def greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """The `new_tokens` ids that `model.generate` appends to those of `prompt`, ignoring its end."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def multiply(a: np.ndarray, b: np.ndarray, device: str = "cpu") -> np.ndarray:
    """``a @ b`` by torch, both of two axes, on `device` as `load` has it."""
    import torch

    return _to_numpy(torch.from_numpy(a).to(device) @ torch.from_numpy(b).to(device))


def write_checkpoint(folder: Path, config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    """Let transformers write a checkpoint, so that its own file is what we load.

    Args:
      folder: written into; made where it lacks.
      config: of the model.
      tensors: Hugging Face's name -> array, such as "transformer.wte.weight" -> [V, D].

    Raises:
      ValueError: to transformers they are not the model's tensors.
    """
    import torch
    import transformers

    fields = config.to_hf_config()
    del fields["architectures"]
    hf_config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForCausalLM.from_config(hf_config)
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"transformers did not take the tensors: {missing}, {unexpected}")
    model.save_pretrained(folder)


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    return tensor.detach().to("cpu", torch.float64).numpy()
