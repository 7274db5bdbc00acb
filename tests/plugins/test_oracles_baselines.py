"""The baselines against implementations that others wrote, and the minimal RNNs against a scan over logarithms.

flash-linear-attention (its fla-core, which needs triton) and transformers are dependencies of development only:
without them their tests are skipped. Both round to fp32 inside, whatever the dtype of their inputs.
"""

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from rnn_lab.kernels.linear.gated_delta_rule import reference as gated_delta_rule
from rnn_lab.layer import Layer
from rnn_lab.lm import LM, LMConfig
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

B, T, D = 2, 9, 12
FP32 = 1e-5
EXACT = 1e-12


def oracle(module: str) -> ModuleType:
    """The module, or a skipped test."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported ({error}): fla-core, triton and transformers come with `make setup`")


def build(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> Layer:
    """A layer whose parameters are all moved off their initial values."""
    torch.manual_seed(3)
    cls = registry().models[name].load()
    layer = cls(cls.Config(dim=D, **fields))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer.to(dtype)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def close(got: Tensor, wanted: Tensor, limit: float) -> None:
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) < limit


def load(module: nn.Module, layer: nn.Module, names: dict[str, str]) -> None:
    """Copy our parameters into `module`; every parameter of both is named."""
    ours, theirs = dict(layer.named_parameters()), dict(module.named_parameters())
    assert names.keys() == theirs.keys()
    assert set(names.values()) == ours.keys()
    with torch.no_grad():
        for their, our in names.items():
            theirs[their].copy_(ours[our].view_as(theirs[their]))


@pytest.mark.filterwarnings("ignore")
def test_gated_delta_rule_is_fla_s_naive_loop() -> None:
    naive = oracle("fla.ops.gated_delta_rule.naive")
    H, K, V = 3, 4, 6
    q, k = (F.normalize(draw(B, T, H, K, dtype=torch.float32, seed=s), dim=-1) for s in (1, 2))
    v, S = draw(B, T, H, V, dtype=torch.float32, seed=3), draw(B, H, K, V, dtype=torch.float32, seed=4)
    g = -F.softplus(draw(B, T, H, dtype=torch.float32, seed=5))
    beta = torch.sigmoid(draw(B, T, H, dtype=torch.float32, seed=6))
    leaves = [t.requires_grad_() for t in (q, k, v, g, beta, S)]
    o, last = gated_delta_rule(*leaves)
    wanted, final = naive.naive_recurrent_gated_delta_rule(
        q, k, v, beta, g, scale=1.0, initial_state=S, output_final_state=True
    )
    close(o, wanted, FP32)
    close(last, final, FP32)
    do, dS = draw(*o.shape, seed=7), draw(*S.shape, seed=8)
    got = torch.autograd.grad((o * do).sum() + (last * dS).sum(), leaves)
    golden = torch.autograd.grad((wanted * do).sum() + (final * dS).sum(), leaves)
    for grad, reference in zip(got, golden, strict=True):
        close(grad, reference, 10 * FP32)


@pytest.mark.filterwarnings("ignore")
def test_gdn_is_the_layer_around_fla_s_naive_loop() -> None:
    naive = oracle("fla.ops.gated_delta_rule.naive")
    layer = build("gdn", torch.float32, n_heads=2, head_dim=4, expansion=1.5)
    x_BTD = draw(B, T, D, dtype=torch.float32)
    weight, qkv = layer.get_parameter("conv.weight"), x_BTD @ layer.get_parameter("qkv_proj.weight").T
    qkv = F.conv1d(F.pad(qkv.mT, (3, 0)), weight, groups=len(weight)).mT
    q, k, v = (s.unflatten(-1, (2, -1)) for s in F.silu(qkv).split((8, 8, 12), -1))
    q, k = (s / (s.square().sum(-1, keepdim=True) + 1e-6).sqrt() for s in (q, k))
    a, b, gate = (x_BTD @ layer.get_parameter(f"{s}_proj.weight").T for s in "abg")
    g = -layer.get_parameter("A_log").exp() * F.softplus(a + layer.get_parameter("dt_bias"))
    o, final = naive.naive_recurrent_gated_delta_rule(q, k, v, torch.sigmoid(b), g, output_final_state=True)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.get_parameter("o_norm_weight")
    y_BTD, state = layer(x_BTD)
    close(y_BTD, (o.flatten(-2) * F.silu(gate)) @ layer.get_parameter("o_proj.weight").T, FP32)
    close(state["S"], final, FP32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("time", [1, T])
def test_mamba2_is_transformers_slow_path(time: int) -> None:
    source = oracle("transformers.models.mamba2.modeling_mamba2")
    config = source.Mamba2Config(
        hidden_size=D, state_size=5, num_heads=6, head_dim=4, expand=2, n_groups=1, chunk_size=4, num_hidden_layers=1
    )
    mixer = source.Mamba2Mixer(config, layer_idx=0).eval()
    layer = build("mamba2", torch.float32, n_state=5, head_dim=4)
    names = {name: name for name in ("in_proj.weight", "out_proj.weight", "A_log", "dt_bias", "D")}
    names |= {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "norm.weight": "norm_weight"}
    load(mixer, layer, names)
    x_BTD = draw(B, time, D, dtype=torch.float32)
    # The slow path has a name of its own in older versions.
    wanted = getattr(mixer, "torch_forward", mixer)(x_BTD)
    close(layer(x_BTD)[0], wanted, FP32)


@pytest.mark.filterwarnings("ignore")
def test_llama_is_transformers_language_model() -> None:
    source = oracle("transformers")
    heads, P, wide, depth = 3, 4, 20, 2
    config = source.LlamaConfig(
        vocab_size=256, hidden_size=D, intermediate_size=wide, num_hidden_layers=depth, num_attention_heads=heads
    )
    config.rms_norm_eps, config.tie_word_embeddings, config._attn_implementation = 1e-6, True, "eager"
    torch.manual_seed(3)
    theirs = source.LlamaForCausalLM(config).eval()
    cls = registry().models["llama"].load()
    cfg = cls.Config(dim=D, head_dim=P, hidden_dim=wide)
    model = LM(cls, cfg, LMConfig(depth=depth, norm_eps=1e-6))
    names = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "final_norm.weight"}
    for i in range(depth):
        names |= {
            f"model.layers.{i}.self_attn.{s}_proj.weight": f"layers.{i}.w{s}.weight" for s in ("q", "k", "v", "o")
        }
        mlp = {"gate": "w1", "down": "w2", "up": "w3"}
        names |= {f"model.layers.{i}.mlp.{s}_proj.weight": f"layers.{i}.{w}.weight" for s, w in mlp.items()}
        names[f"model.layers.{i}.input_layernorm.weight"] = f"layers.{i}.attention_norm"
        names[f"model.layers.{i}.post_attention_layernorm.weight"] = f"layers.{i}.ffn_norm"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    load(theirs, model, names)
    with torch.no_grad():  # they rotate channel i with i + P / 2, we rotate neighbours
        for name, parameter in theirs.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.copy_(parameter.unflatten(0, (heads, P // 2, 2)).transpose(1, 2).flatten(0, 2))
    bytes_BT = torch.randint(256, (B, T), generator=torch.Generator().manual_seed(0))
    close(model(bytes_BT)[0], theirs(bytes_BT).logits, FP32)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_gru_and_lstm_are_torch_s_between_projections(name: str) -> None:
    layer = build(name, expansion=1.5)
    d = layer.cfg.d_inner
    module: Any = {"gru": nn.GRU, "lstm": nn.LSTM}[name](d, d, batch_first=True, dtype=torch.float64)
    bias = "b_ih" if name == "lstm" else "W_ih.bias"
    pairs = {"weight_ih_l0": "W_ih.weight", "weight_hh_l0": "W_hh", "bias_ih_l0": bias, "bias_hh_l0": "b_hh"}
    with torch.no_grad():
        for theirs, ours in pairs.items():
            module.get_parameter(theirs).copy_(layer.get_parameter(ours))
    P_in, P_out = layer.get_parameter("in_proj.weight"), layer.get_parameter("out_proj.weight")
    x_BTD = draw(B, T, D)
    wanted, _ = module(x_BTD @ P_in.T)
    first, state = layer(x_BTD[:, :4])
    second, _ = layer(x_BTD[:, 4:], state)
    close(torch.cat([first, second], 1), wanted @ P_out.T, EXACT)


def log_scan(log_a: Tensor, log_u: Tensor, log_h: Tensor | None) -> Tensor:
    """h_t = a_t h_{t-1} + u_t of positive numbers, by sums and log-sum-exps alone."""
    if log_h is not None:
        log_a, log_u = F.pad(log_a, (0, 0, 1, 0)), torch.cat([log_h[:, None], log_u], 1)
    total = log_a.cumsum(1)
    h = (total + (log_u - total).logcumsumexp(1)).exp()
    return h if log_h is None else h[:, 1:]


def log_g(u: Tensor) -> Tensor:
    return torch.where(u >= 0, (u.relu() + 0.5).log(), -F.softplus(-u))


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("expansion", [1.0, 1.5])
@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_minimal_rnns_are_the_scan_over_logarithms(name: str, expansion: float, carried: bool) -> None:
    layer = build(name, expansion=expansion)
    x_BTD, h = draw(B, T, D), draw(B, layer.cfg.d_inner, seed=6).exp()
    projected = x_BTD @ layer.get_parameter("in_proj.weight").T
    if name == "mingru":
        c, z = projected.chunk(2, -1)
        log_a, log_u, log_h = -F.softplus(z), -F.softplus(-z) + log_g(c), h.log()
    else:
        c, f, i = projected.chunk(3, -1)
        difference = F.softplus(-f) - F.softplus(-i)
        log_a, log_u, log_h = -F.softplus(difference), -F.softplus(-difference) + log_g(c), log_g(h)
    wanted = log_scan(log_a, log_u, log_h if carried else None)
    # The scan of minLSTM enters a carried state as g(h): ours continues from what it is given.
    start = h if name == "mingru" else log_g(h).exp()
    y_BTD, state = layer(x_BTD, {"h": start} if carried else None)
    close(state["h"], wanted[:, -1], EXACT)
    close(y_BTD, wanted if expansion == 1 else wanted @ layer.get_parameter("out_proj.weight").T, EXACT)
