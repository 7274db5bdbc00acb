"""Recurrences without a kernel: loops in CUDA graphs, each step fused."""
