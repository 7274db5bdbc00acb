"""What a recurrence is certified on."""

import torch
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams


def test_every_form_of_a_kernel_is_seen_whatever_the_call():
    cell = Cell(torch.add)
    for B, T in ((1, 1), (3, 5), (4, 64)):
        streams = Streams((torch.randn(B, T, 3),), queries=(torch.randn(B, T, 2),))
        reset = torch.zeros(B, T, dtype=torch.bool)
        calls = RECURRENCE.probe(cell, torch.zeros(B, 3), streams, reset)
        assert [call[2].inputs[0].shape for call in calls] == [(min(B, 2), 19, 3), (min(B, 2), 16, 3)]
        assert all(call[3].shape == call[2].queries[0].shape[:2] for call in calls)
        assert all(call[1].abs().min() > 0 for call in calls)
