"""The command line."""

import argparse
import sys
from importlib.resources import files

from wordfreq.count import frequencies


def main() -> None:
    parser = argparse.ArgumentParser(prog="wordfreq")
    version = files("wordfreq").joinpath("VERSION").read_text().strip()
    parser.add_argument("--version", action="version", version=version)
    parser.parse_args()
    for word, count in frequencies(sys.stdin.read()):
        print(count, word)
