"""``python -m heteroplace``."""

from heteroplace.cli import console

console()
