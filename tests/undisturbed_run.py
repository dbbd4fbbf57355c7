"""The fixture of a run that is left alone, to compare others with.

A test module asks for it with ``pytest_plugins = ["undisturbed_run"]``.
"""

import pytest
from training_run import Undisturbed, run_config

from benchmarks.interrupted_run import finished, start
from benchmarks.interrupted_start import Interruption


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run of `run_config` with one thread; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    variables = {
        "JAXCODER_CACHE": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    config = run_config(folder)
    finished(start(config, Interruption(), threads=1, variables=variables))
    return Undisturbed(config, variables)
