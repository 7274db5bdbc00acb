"""What programs in this folder ask of their arguments and of the machine; each ends with 2 and says what is wrong."""

import argparse
from argparse import ArgumentTypeError
from pathlib import Path


def on_gpu(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, on a machine with a GPU."""
    import torch

    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none that torch can use")
    return options


def seconds(text: str) -> float:
    """A time above zero."""
    return _number(text, 0, float("inf"), "a number of seconds above 0")


def share(text: str) -> float:
    """Between nothing and all, neither of them."""
    return _number(text, 0, 1, "a number above 0 and below 1")


def shape(text: str) -> tuple[int, int]:
    """Rows and columns, such as 2048x1024; multiples of 64, as kernels take them."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()) or not int(rows) * int(columns):
        raise ArgumentTypeError(f"{text!r} is no shape such as 2048x1024")
    if int(rows) % 64 or int(columns) % 64:
        raise ArgumentTypeError(f"{text}: rows and columns have to be multiples of 64")
    return int(rows), int(columns)


def file(text: str) -> Path:
    """A file that can be written, in a folder that exists."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"{text} is a folder, or lies in none that exists")
    return path


def _number(text: str, low: float, high: float, wanted: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = low
    if not low < found < high:
        raise ArgumentTypeError(f"{text!r} is not {wanted}")
    return found
