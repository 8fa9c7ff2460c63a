"""`python -m ditbench` is the command `ditbench`."""

import sys

from ditbench.cli import main

sys.exit(main())
