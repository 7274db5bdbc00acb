"""The `rnn-lab` command."""
