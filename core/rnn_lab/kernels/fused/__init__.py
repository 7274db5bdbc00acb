"""The rest of a training step: norms, gates, convolutions, losses and linear maps with their neighbours."""
