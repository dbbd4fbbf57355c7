"""Training with fill-in-the-middle, run from the checkout: ``python -m train``. Not there yet."""
