"""What `rnn-lab bench` measures: operations, training steps and generation, each beside its peers in one process."""
