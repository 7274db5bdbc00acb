"""Element-wise recurrences: from a cell's expression to one kernel per direction."""
