"""Recurrences with dense matrices in thread-block clusters: from a cell's expression to one kernel per direction."""
