"""TinyStarCoderPy (GPT-BigCode, multi-query attention, fill-in-the-middle) in JAX and Flax.

generator = jaxcoder.Generator.from_pretrained("bigcode/tiny_starcoder_py")
print(generator.generate("def fibonacci(n):").text)
print(generator.infill("def add(a, b):\\n    return ", "\\n\\nprint(add(1, 2))").text)
"""

from .completion import Completion, Timings
from .config import ModelConfig
from .errors import CheckpointError, ConfigError, TokenizerError
from .generator import Generator

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Generator",
    "ModelConfig",
    "Timings",
    "TokenizerError",
]
