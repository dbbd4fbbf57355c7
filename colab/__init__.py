"""The notebooks, their paired sources, and what their first cell runs; from the checkout only.

- install: what the first cell calls.
- disconnect: ends a training run on purpose, to show that it goes on.
- models: the model that a notebook works with.
- build: the .ipynb files and the badges, from the sources and the address in pyproject.toml.
- inference, finetune_tpu, parity: the sources, in jupytext's percent format.
"""
