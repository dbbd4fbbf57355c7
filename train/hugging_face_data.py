"""Rows of a Hugging Face data set, by the `datasets` package where it is installed."""

from collections.abc import Iterable, Iterator
from typing import Any

from jaxcoder.errors import ConfigError

from .config import SourceConfig


def read_rows(name: str, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a data set with its name, ``NAME:row``, in the data set's own order.

    The data TinyStarCoderPy was trained on is gated: accept its terms on the Hub, log in
    (``hf auth login``), and give ``--data hf:bigcode/starcoderdata --source.hf-data-dir python``;
    it downloads about 60 GB once.

    Args:
      name: of the data set on the Hub, or a local folder the package can read.
      source: `hf_data_dir`, `hf_split`, and the text's `field`.

    Raises:
      ConfigError: the package is not installed, the data set cannot be loaded, or has no such
        field; when it is iterated, a row cannot be read.
    """
    if not name:
        raise ConfigError("data: 'hf:', expected a name after it, such as hf:bigcode/starcoderdata")
    try:
        from datasets import load_dataset
    except ImportError as exc:
        raise ConfigError(
            f"data: 'hf:{name}' needs the `datasets` package ({exc}); "
            "install it: pip install datasets"
        ) from exc
    try:
        rows = load_dataset(name, data_dir=source.hf_data_dir, split=source.hf_split)
    # The package raises errors of half a dozen libraries; each means the same to the user.
    except Exception as exc:
        raise ConfigError(
            f"data: 'hf:{name}' (data_dir {source.hf_data_dir!r}, split {source.hf_split!r}) "
            f"cannot be loaded ({type(exc).__name__}: {exc}); check the names, and for a gated "
            "data set accept its terms on the Hub and log in: hf auth login"
        ) from exc
    if source.field not in rows.column_names:
        raise ConfigError(
            f"source.field: {source.field!r} is not in hf:{name}, which has "
            f"{', '.join(rows.column_names)}; name the text's field"
        )
    return _named_rows(name, rows)


def _named_rows(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    number = -1
    try:
        for number, row in enumerate(rows):
            yield f"{name}:{number}", row
    except MemoryError:
        raise
    # As above: a damaged file and a lost connection come as errors of several libraries.
    except Exception as exc:
        raise ConfigError(
            f"data: 'hf:{name}': row {number + 1} cannot be read ({type(exc).__name__}: "
            f"{exc}); download the data set anew, or leave that part out with source.hf_split"
        ) from exc
