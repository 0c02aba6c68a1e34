"""Becomes another program that dies with the process that started this one: python -m serving.program
PROGRAM ARGUMENTS... (``quantize.process`` has asked the kernel for that already)."""

import os
import sys

if __name__ == "__main__":
    os.execvp(sys.argv[1], sys.argv[1:])
