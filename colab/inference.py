# %% [markdown]
# {badge}
# # jaxcoder: completion and infilling
#
# TinyStarCoderPy completes and infills Python, in JAX and Flax. Everything here runs on a CPU too.

# %% [markdown]
# **Install.** Takes the checkout that this notebook is in, or clones it, and adds the libraries
# that are missing. What is preinstalled stays as it is, and no restart is needed.

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
# demo model inside the package: tiny, its output is not to be used.

# %%
from colab.models import model_or_demo
from jaxcoder import Generator

MODEL = "bigcode/tiny_starcoder_py"  # @param {type: "string"}
DTYPE = "auto"  # @param ["auto", "float32", "bfloat16"]
generator = Generator.from_pretrained(model_or_demo(MODEL), dtype=DTYPE)

# %% [markdown]
# **Complete.** The first call compiles, for seconds; greedily, a small model soon repeats itself.

# %%
PROMPT = '''import os


def read_lines(path):
    """Return the lines of a file."""'''
first = generator.generate(PROMPT, max_new_tokens=64)
print(PROMPT + first.text)

# %% [markdown]
# **Stream.** Pieces come as they are decoded, here sampled, and end before the next function.

# %%
for piece in generator.stream(PROMPT, temperature=0.4, seed=1, stop="\ndef "):
    print(piece, end="", flush=True)

# %% [markdown]
# **Infill.** The model writes what stands between a prefix and a suffix; here, between the marks.

# %%
PREFIX = "class Counter:\n    def __init__(self):"
SUFFIX = "\n\n    def add(self, name):\n        self.counts[name] += 1\n"
print(f"{PREFIX}⟦{generator.infill(PREFIX, SUFFIX, max_new_tokens=32).text}⟧{SUFFIX}")

# %% [markdown]
# **Batch.** A list gives a list. The prompts do not influence each other; a seed gives one text.

# %%
PROMPTS = ["def add(a, b):", "class Stack:", "import json\n"]
for completion in generator.generate(PROMPTS, max_new_tokens=24, temperature=0.4, seed=1):
    print(f"{completion.finish_reason}: {completion.text!r}")

# %% [markdown]
# **Speed.** Compiling is told apart from running; the second run of a shape compiles nothing.

# %%
second = generator.generate(PROMPT, max_new_tokens=64)
seconds = second.timings.prefill + second.timings.decode
print(f"compiling: {first.timings.compile:.1f} s, once; again: {second.timings.compile:.1f} s")
print(f"running: {len(second.tokens) / seconds:.0f} tokens/s, one prompt")

# %% [markdown]
# ## Looking inside
#
# **Attention.** How much each token (row) of a text reads from those before it (columns), in the
# heads of block 1. `inspect.names(generator.config)` lists what else can be captured, and patched.

# %%
from matplotlib import pyplot

from benchmarks.pictures import attention_map
from jaxcoder import inspect

TEXT = "def add(a, b):\n    return a + b\n"
NAME = "h.1.attn.pattern"
tokens = generator.tokenizer.encode(TEXT)
labels = [generator.tokenizer.decode([token]) for token in tokens]
run = inspect.run(generator, [tokens], capture=NAME)
figure = pyplot.figure(figsize=(8, 2 * generator.config.n_head), layout="constrained")
attention_map(figure, run.activations[NAME][0], labels, title=NAME)

# %% [markdown]
# **Logit lens.** What each layer's stream, read out as if it were the last, would put next.

# %%
lens = inspect.logit_lens(generator, [tokens], positions=[-1])[:, 0, 0]
for layer, token in enumerate(lens.argmax(-1).tolist()):
    print(f"after {layer} blocks: {generator.tokenizer.decode([token])!r}")

# %% [markdown]
# **Loss.** How unexpected each token of a file is to the model, in nats: the darker, the more.

# %%
from IPython.display import HTML

HTML(inspect.to_html(inspect.token_losses(generator, PROMPT + first.text)))
