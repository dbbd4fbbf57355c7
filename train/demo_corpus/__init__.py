"""The demo model's training text and held-out text, from wheels and the standard library.

Run as ``python -m train.demo_corpus --wheels FOLDER --out FOLDER``. Which files are trained on
depends on the wheels, the interpreter and the rules in this package alone, never on chance:
wherever some of many are taken, it is by the order of the SHA-256 of their names.
"""
