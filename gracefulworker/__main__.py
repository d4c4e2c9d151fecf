"""`python -m gracefulworker`, where the command's script is not on the path."""

import sys

from gracefulworker.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
