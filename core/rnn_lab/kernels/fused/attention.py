"""o = softmax(q k' / sqrt(P) where visible) v   per head.

    q_BHTP           queries of T steps             k_BHJP, v_BHJP  keys and values of J rows
    visible_B1TJ     True where a step may see a row; None: T = J and each step sees the rows up to its own

The reference is two batched products in the dtype of the queries, with the softmax in fp32 (fp64 for fp64).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op


def reference(q_BHTP: Tensor, k_BHJP: Tensor, v_BHJP: Tensor, visible_B1TJ: Tensor | None = None) -> Tensor:
    """Scores, softmax, mixture.

    Args:
        q_BHTP: queries.
        k_BHJP: keys.
        v_BHJP: values.
        visible_B1TJ: which rows each step may see.

    Returns:
        Mixtures `[B, H, T, P]` in the dtype of the queries.

    """
    T, J = q_BHTP.shape[2], k_BHJP.shape[2]
    if visible_B1TJ is None:
        visible_B1TJ = torch.ones(T, J, dtype=torch.bool, device=q_BHTP.device).tril()
    scores_BHTJ = (q_BHTP @ k_BHJP.mT) * q_BHTP.shape[-1] ** -0.5
    wide = torch.promote_types(scores_BHTJ.dtype, torch.float32)
    weights_BHTJ = scores_BHTJ.to(wide).masked_fill(~visible_B1TJ, -torch.inf).softmax(-1)
    return torch.matmul(weights_BHTJ.to(v_BHJP.dtype), v_BHJP)


def sdpa(q_BHTP: Tensor, k_BHJP: Tensor, v_BHJP: Tensor, visible_B1TJ: Tensor | None = None) -> Tensor:
    """Torch's own attention, which picks a fused kernel where there is one."""
    return F.scaled_dot_product_attention(q_BHTP, k_BHJP, v_BHJP, visible_B1TJ, is_causal=visible_B1TJ is None)


def _refuses_sdpa(q_BHTP: Tensor, k_BHJP: Tensor, v_BHJP: Tensor, visible_B1TJ: Tensor | None = None) -> str | None:
    """Never: torch falls back to its own plain form."""
    return None


ATTENTION = Op("attention", reference, [Backend("sdpa", sdpa, _refuses_sdpa)])
