"""Recurrences that are linear in their state: chunks and scans instead of steps."""
