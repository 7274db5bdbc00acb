"""Distributions: which ones are the lab's own, and how their names are compared."""

import re

OWN = (
    "rnn-lab", "rnn-lab-core", "rnn-lab-cli", "rnn-lab-baselines", "rnn-lab-e0-e5", "rnn-lab-e61-e68",
    "rnn-lab-e74-e88",
)  # fmt: skip
"""What this repository builds. A plugin neither replaces one of them nor takes a name that one of them registers."""


def normalised(name: str) -> str:
    """The form in which names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_own(name: str) -> bool:
    """Whether the distribution called `name`, in any spelling, is the lab's own."""
    return normalised(name) in OWN
