"""Recurrences over matrices whose rows never meet: from a cell's expression to one kernel per direction."""
