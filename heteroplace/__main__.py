"""``python -m heteroplace``."""

import sys

from heteroplace.cli import main

sys.exit(main())
