"""Tool-box around checkpoints: convert other layouts, export, and verify against PyTorch.

Run from the checkout: ``python -m conversion {convert,export,verify}``.
"""
