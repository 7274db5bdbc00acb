"""What runs left behind, read and judged: records, verdicts, intervals, and what speaks against a comparison."""
