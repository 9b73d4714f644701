"""`python -m fedtandem`: the command line."""

import sys

from fedtandem.cli import main

sys.exit(main())
