"""The detached process of a training: the job of one folder."""

import sys

from .process import main

if __name__ == "__main__":
    main(sys.argv[1])
