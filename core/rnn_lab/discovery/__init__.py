"""What is installed and may be used: the lab's own parts, distributions, limits on foreign code, optional libraries."""
