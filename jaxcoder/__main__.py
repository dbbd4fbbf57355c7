"""``python -m jaxcoder`` is the ``jaxcoder`` command."""

from .cli import main

main()
