"""Run `python -m tutorial_lib.recipes`."""

import sys

from tutorial_lib.recipes import main

sys.exit(main(sys.argv[1:]))
