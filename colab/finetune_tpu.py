# %% [markdown]
# {badge}
# # jaxcoder: fine-tuning on your own code
#
# Fill-in-the-middle training of TinyStarCoderPy on a folder of Python, on a TPU, a GPU, or, with
# the demo model, on a CPU. A run that is cut off goes on where it stopped.

# %% [markdown]
# **Install.** Takes the checkout that this notebook is in, or clones it, and adds the libraries
# that are missing. What is preinstalled stays as it is, and no restart is needed.

# %%
# {install}

# %% [markdown]
# **Device.** An error here says that JAX runs on the CPU beside an accelerator that lies unused.
# One process holds a TPU: training runs in this kernel, and no other notebook may have it.

# %%
import jax

from jaxcoder.devices import checked_device

device = checked_device()
print(
    f"{device.platform}: {device.device_kind}, {jax.device_count()} of them, jax {jax.__version__}"
)

# %% [markdown]
# **Model.** Left empty, it is the demo model inside the package on a CPU, and elsewhere the
# published one, a download of 657 MB; without a network it is the demo model there too. The
# published weights are under the
# [BigCode OpenRAIL-M licence](https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement),
# which restricts what they, and what is trained from them, may be used for.

# %%
from colab.models import PUBLISHED, embedded_demo, model_or_demo
from jaxcoder import Generator

MODEL = ""  # @param {type: "string"}
folder = model_or_demo(MODEL or ("" if device.platform == "cpu" else PUBLISHED))
is_demo = folder == embedded_demo()

# %% [markdown]
# **Settings.** `DATA` is a folder of Python files, by default this library's own code. `RUN` keeps
# everything of the run; a runtime's disk goes with the runtime, so for a run that outlives it mount
# Google Drive (the folder symbol at the left) and take `/content/drive/MyDrive/jaxcoder-run`. All
# other settings are in `train/config.py`; a run goes on only with those that it began with.

# %%
from pathlib import Path

import jaxcoder
from train.config import BatchConfig, LoopConfig, OptimizerConfig, SourceConfig, TrainConfig

DATA = ""  # @param {type: "string"}
RUN = "runs/notebook"  # @param {type: "string"}
STEPS = 60  # @param {type: "integer"}
seq_len, parts = (256, 1) if is_demo else (2048, 8)
config = TrainConfig(
    data=DATA or str(Path(jaxcoder.__file__).parent),
    out=RUN,
    model=str(folder),
    source=SourceConfig(validation_share=0.1),
    batch=BatchConfig(size=8, seq_len=seq_len, accumulation=parts, piece_tokens=(32, 2048)),
    optimizer=OptimizerConfig(peak_lr=1e-3 if is_demo else 1e-4, warmup_steps=STEPS // 10),
    loop=LoopConfig(steps=STEPS, eval_every=STEPS // 2, save_every=STEPS // 4),
)

# %% [markdown]
# **Before.** What the model writes between the marks. This library's own way would be an error that
# says what it got; the demo model is too small to do more than fall into that tone.

# %%
PREFIX = "def read(path: Path) -> dict:\n    if not path.exists():"
SUFFIX = "\n    return json.loads(path.read_text())\n"
generator = Generator.from_pretrained(folder)
before = generator.infill(PREFIX, SUFFIX, mode="spm", max_new_tokens=32)
print(f"{PREFIX}⟦{before.text}⟧{SUFFIX}")

# %% [markdown]
# **Train, until the connection breaks.** `fit` is the whole run. Here an interruption, as the stop
# button sends it, comes after the first checkpoint: the run saves, and ends.

# %%
from colab.disconnect import disconnect
from train.loop import fit

with disconnect(config):
    print(fit(config))

# %% [markdown]
# **Go on.** The same call, also in a new runtime whose `RUN` and data are the same; the result is
# that of a run that was never cut off.

# %%
outcome = fit(config)
print(outcome)
assert outcome.is_finished, "it was interrupted: run this cell again"

# %% [markdown]
# **Curve.** Loss of training and of the documents held out, in nats per token.

# %%
from IPython.display import SVG

from train.plot import plot_run

SVG(filename=plot_run(Path(RUN)))

# %% [markdown]
# **Export.** A folder in Hugging Face's layout with a model card; transformers loads it too.

# %%
from train.export import export_run

exported = export_run(Path(RUN))
print(*sorted(path.name for path in exported.iterdir()))

# %% [markdown]
# **After.** The exported model at the same hole.

# %%
generator = Generator.from_pretrained(exported)
after = generator.infill(PREFIX, SUFFIX, mode="spm", max_new_tokens=32)
print(f"{PREFIX}⟦{after.text}⟧{SUFFIX}")
