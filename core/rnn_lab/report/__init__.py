"""Reports on a folder of runs: facts first, pages as renderings of them, and a check that computes all again."""
