"""Run `python -m tutorial_lib.recipes`."""

import sys

from tutorial_lib import ranks
from tutorial_lib.recipes import main

ranks.leave(main(sys.argv[1:]))
