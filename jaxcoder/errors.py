"""The three errors a model folder can raise. Bad arguments are plain ``ValueError``.

Every message names the file or field, the value found, what was expected and what to do.
"""


class CheckpointError(ValueError):
    """Weights that are missing, damaged, or not those of the config beside them."""


class ConfigError(ValueError):
    """A ``config.json`` that cannot be read or describes a model we do not implement."""


class TokenizerError(ValueError):
    """A ``tokenizer.json`` that cannot be read or does not fit the model."""
