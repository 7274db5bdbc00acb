"""Nearest semi-orthogonal matrices of a batch, by polynomials of odd degree: only products, so it runs on tensor cores.

`ns` is the quintic of Muon (K. Jordan et al., 2024), whose results have singular values of about 0.7 to 1.2.
`polar_express` (arXiv 2505.16932) changes its coefficients from step to step: 0.96 to 1.14 after five.
"""

import torch
from torch import Tensor

from rnn_lab.optim.gram import product

NS = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""For five steps from X = u / (1.01 |u| + 1e-6); further steps repeat the last."""
EPS = 1e-7


def orthogonalise(u_Kmn: Tensor, steps: int = 5, kind: str = "ns", dtype: torch.dtype | None = None) -> Tensor:
    """O with `u ~ O S`, O O' ~ 1 where a matrix is wide and O' O ~ 1 where it is tall.

    Args:
        u_Kmn: a batch of matrices of one shape; each is scaled by its own Frobenius norm.
        steps: iterations.
        kind: `ns` or `polar_express`.
        dtype: of the products; left open: bf16 on a GPU, otherwise that of u, at least fp32.

    Returns:
        Matrices of u's shape in the dtype of the products; zeros for zeros.

    """
    if u_Kmn.shape[-2] > u_Kmn.shape[-1]:
        return orthogonalise(u_Kmn.mT, steps, kind, dtype).mT
    X_Kmn = u_Kmn.to(dtype or product_dtype(u_Kmn))
    norm_K11 = torch.linalg.vector_norm(X_Kmn, dim=(-2, -1), keepdim=True, dtype=u_Kmn.dtype)
    scale = norm_K11.clamp(min=EPS) if kind == "ns" else 1.01 * norm_K11 + 1e-6
    X_Kmn = X_Kmn / scale.to(X_Kmn.dtype)
    symmetric = product(X_Kmn)
    for a, b, c in coefficients(steps, kind):
        A_Kmm = symmetric(X_Kmn)
        B_Kmm = symmetric(A_Kmm, A_Kmm, c, b, a)
        X_Kmn = torch.bmm(B_Kmm, X_Kmn)  # with a in B, X is not copied to be added to
    return X_Kmn


def flops(m: int, n: int, steps: int = 5) -> int:
    """FLOPs of `orthogonalise` for one matrix of m <= n as a library computes it; 2 per multiply-add.

    X X' and B X take 2 m m n each, A A takes 2 m m m. With half of the symmetric products: m m n and m m m less.
    """
    return steps * (4 * m * m * n + 2 * m**3)


def coefficients(steps: int, kind: str) -> list[tuple[float, float, float]]:
    """(a, b, c) of X <- (a + b A + c A²) X with A = X X', per step."""
    if kind == "ns":
        return [NS] * steps
    return [POLAR_EXPRESS[min(i, len(POLAR_EXPRESS) - 1)] for i in range(steps)]


def product_dtype(u: Tensor) -> torch.dtype:
    """bf16 on a GPU; on the CPU, where it is not faster, the dtype of u and at least fp32."""
    return torch.bfloat16 if u.is_cuda else torch.promote_types(u.dtype, torch.float32)
