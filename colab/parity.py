# %% [markdown]
# {badge}
# # jaxcoder: the numbers against PyTorch
#
# The same weights in JAX, in PyTorch (transformers) and in a NumPy float64 reference: how far is
# each from float64, layer by layer, and do they choose the same tokens?

# %% [markdown]
# **Memory.** Where PyTorch is on the same GPU, JAX must not take all of its memory; JAX reads this
# when it is imported.

# %%
import os

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"

# %% [markdown]
# **Install.** Takes the checkout that this notebook is in, or clones it, and adds the libraries
# that are missing, PyTorch apart. What is preinstalled stays as it is, and no restart is needed.

# %%
# {install}

# %% [markdown]
# **Device.** An error here says that JAX runs on the CPU beside an accelerator that lies unused.

# %%
import jax

from jaxcoder.devices import checked_device

device = checked_device()
print(
    f"{device.platform}: {device.device_kind}, {jax.device_count()} of them, jax {jax.__version__}"
)

# %% [markdown]
# **Model.** The first use downloads 657 MB. The weights are under the
# [BigCode OpenRAIL-M licence](https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement),
# which restricts what they may be used for. Without a network, or with an empty `MODEL`, it is the
# demo model inside the package.

# %%
from colab.models import model_or_demo
from jaxcoder import Generator

MODEL = "bigcode/tiny_starcoder_py"  # @param {type: "string"}
folder = model_or_demo(MODEL)
generator = Generator.from_pretrained(folder, dtype="float32")

# %% [markdown]
# **Text.** 256 tokens of this library's own code.

# %%
from pathlib import Path

import jaxcoder

text = Path(jaxcoder.__file__).with_name("model.py").read_text()
tokens = generator.tokenizer.encode(text)[:256]

# %% [markdown]
# **Float64 and JAX.** The reference is the definition of the model in NumPy; ours is float32.

# %%
from conversion import parity, pytorch
from jaxcoder import reference
from jaxcoder.hf_names import params_to_hf

tensors = params_to_hf(generator.params, generator.config)
truth = reference.forward(tensors, generator.config, tokens)
ours = parity.forward(generator.model, generator.params, tokens)

# %% [markdown]
# **PyTorch.** The same folder in transformers, float32 on the CPU. Where PyTorch is not installed,
# it is float64 alone that is compared with.

# %%
try:
    torch_model = pytorch.load(folder, "float32")
    theirs = pytorch.forward(torch_model, tokens)
except ValueError as exc:
    torch_model = theirs = None
    print(f"Compared with float64 alone: {exc}")

# %% [markdown]
# **Error by layer.** RMS error of the residual stream against float64, relative to the stream.
# Rounding grows smoothly with depth; a fault would jump at its layer.

# %%
from matplotlib import pyplot

from benchmarks.pictures import layer_errors

table = parity.layer_table(truth.residuals, ours.residuals, (theirs or ours).residuals)
figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
layer_errors(axes, table, title="float32", with_pytorch=theirs is not None)

# %% [markdown]
# **Distributions.** Mean KL divergence from float64, in nat, and how often the likeliest token is
# float64's.

# %%
for name, side in (("jaxcoder", ours), ("PyTorch", theirs)):
    if side:
        kl = parity.mean_kl(truth.logits, side.logits)
        agreement = (side.logits.argmax(-1) == truth.logits.argmax(-1)).mean()
        print(f"{name}: KL {kl:.1e} nat, likeliest token as in float64: {agreement:.1%}")

# %% [markdown]
# **Greedy text.** Of 32 new tokens, how many are equal before the two texts part. Where two tokens
# are nearly tied, rounding decides; `python -m conversion verify` tells ties from faults.

# %%
for prompt in (tokens[:32], tokens[:64], tokens[:128]) if torch_model else ():
    (mine,) = parity.greedy(generator.model, generator.params, [prompt], 32)
    same = parity.equal_prefix(mine, pytorch.greedy(torch_model, prompt, 32))
    print(f"after {len(prompt)} tokens: {same} of 32 are equal")
