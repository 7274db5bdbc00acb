"""Hyper-parameter search in which every trial has the same number of parameters: `rnn-lab search`."""
