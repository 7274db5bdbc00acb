"""Logs and tables of other trainers as external runs, so that they can be judged beside ours: `rnn-lab import`."""
