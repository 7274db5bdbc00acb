"""Automatic diagnostics of a run: rules over its metrics, each with what to change. See docs/diagnostics.md."""

from rnn_lab.diagnostics.rule import Facts as Facts
from rnn_lab.diagnostics.rule import Finding as Finding
from rnn_lab.diagnostics.rule import Rule as Rule
from rnn_lab.diagnostics.rule import Window as Window
