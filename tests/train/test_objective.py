"""What is back-propagated, against plain torch; and runs with it: pieces, graph, resume, evaluation."""

import json

import pytest
import torch
from rnn_lab.errors import CheckpointError, ConfigError
from rnn_lab.registry import registry
from rnn_lab.sections import ObjectiveSection
from rnn_lab.train.checkpoint import load_checkpoint
from rnn_lab.train.heads import attach_heads
from rnn_lab.train.objective import Objective
from rnn_lab.train.run import build, load_trained
from rnn_lab.train.rundir import list_checkpoints

from .conftest import Recorder, resume, run
from .models import assert_equal, gradients, model_of, windows
from .test_resume import assert_same_run, facts, weights

VARIANTS = ["linear", "layer", "sequential", "shared"]


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits.mT, targets.long())


def with_heads(name="e61", **values):
    cfg = ObjectiveSection(use_mtp=True, **values)
    return attach_heads(model_of(name), cfg).double(), Objective(cfg)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_weight_leaves_the_trunk_its_gradients(variant):
    model, made = with_heads(mtp_variant=variant, mtp_weight=0.0)
    window = windows(ahead=4)
    bare = model_of()
    plain = gradients(bare, bare.loss(window[:, :13])[0])
    found = gradients(model, made(model, window, None, None).objective)
    assert_equal(plain, {name: g for name, g in found.items() if not name.startswith("heads")})
    assert all(g.abs().max() == 0 for name, g in found.items() if name.startswith("heads"))


def test_the_objective_is_the_weighted_sum_of_its_horizons():
    model, made = with_heads(mtp_n_tokens=4)
    window = windows(ahead=4)
    _, x, _ = model.trunk(window[:, :12])
    ce = [cross_entropy(x @ model.embedding.weight.T, window[:, 1:13])]
    ce += [cross_entropy(x @ model.heads.horizons[k - 2].weight.T, window[:, k : k + 12]) for k in (2, 3, 4)]
    parts = made(model, window, None, None)
    assert parts.objective.item() == pytest.approx((ce[0] + 0.2 * (ce[1] + 0.5 * ce[2] + 0.25 * ce[3])).item())
    assert parts.loss.item() == pytest.approx(ce[0].item())
    told = dict(zip(made.columns, parts.figures, strict=True))
    assert told["mtp_k4"].item() == pytest.approx(ce[3].item())
    normal = with_heads(mtp_n_tokens=4, mtp_normalize=True)[1]
    assert sum(normal.weights) == pytest.approx(0.2)


def test_a_head_of_horizon_k_learns_the_byte_k_further_on():
    """Over the byte values in order, where the next bytes follow from this one."""
    model, made = with_heads(mtp_n_tokens=4, mtp_weight=1.0)
    model, window = model.float(), torch.arange(20, dtype=torch.uint8).unfold(0, 12, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        made(model, window, None, None).objective.backward()
        optimizer.step()
    _, x, _ = model.trunk(window[:, :8])
    for k, head in enumerate(model.heads.horizons, 2):
        assert torch.equal((x @ head.weight.T).argmax(-1), window[:, k : k + 8].long()), k


def test_one_horizon_has_no_heads():
    model, made = with_heads(mtp_n_tokens=1)
    assert model.heads is None and made.columns == ("objective",) and made.ahead == 1
    plain = model_of()
    loss = plain.loss(windows())[0]
    assert torch.equal(made(model, windows(), None, None).objective, loss)


@pytest.mark.parametrize("name", ["e1", "llama", "mamba2"])
@pytest.mark.parametrize("variant", ["layer", "sequential"])
def test_blocks_carry_state_and_see_no_future(name, variant):
    """Two halves with carried state predict what the whole window does, and no head sees its own target."""
    model, made = with_heads(name, mtp_variant=variant, mtp_n_tokens=3)
    window = windows(T=12, ahead=3)
    whole = made(model, window, None, None)
    half = made(model, window[:, :9], None, None)
    rest = made(model, window[:, 6:], half.states, None)
    assert ((half.objective + rest.objective) / 2).item() == pytest.approx(whole.objective.item(), abs=1e-9)
    other = window.clone()
    other[:, -1] = 0  # target of the last position's furthest horizon, input of nothing
    again = made(model, other, None, None)
    assert [f.item() for f in again.figures[1:-2]] == [f.item() for f in whole.figures[1:-2]]
    assert again.figures[-2].item() != whole.figures[-2].item()


def test_a_sequential_block_reads_the_byte_before_its_target():
    model, _ = with_heads(mtp_variant="sequential", mtp_n_tokens=4)
    window = windows(T=12, ahead=4)
    stream, x, _ = model.trunk(window[:, :12])

    def predicted(window):
        return {k: logits for k, logits, _ in model.heads(model, stream, x, window, None, None, x)}

    plain = predicted(window)
    for k in (2, 3, 4):
        other = window.clone()
        other[:, 12 + k - 2] = 0  # the byte before the last position's target
        changed = {at: (logits != plain[at]).any(-1).any(0) for at, logits in predicted(other).items()}
        assert [at for at, where in changed.items() if where.any()] == list(range(k, 5))
        assert changed[k].nonzero().flatten().tolist() == [11]


def test_filtered_positions_are_dropped_from_every_horizon():
    model, _ = with_heads()
    made = Objective(ObjectiveSection(use_mtp=True, use_collider=True))
    window = windows(ahead=4)
    parts = made(model, window, None, None, filtering=True)
    _, x, _ = model.trunk(window[:, :12])
    nll = torch.nn.functional.cross_entropy((x @ model.embedding.weight.T).mT, window[:, 1:13].long(), reduction="none")
    top = nll.topk(8, 1).indices
    ahead = torch.nn.functional.cross_entropy(
        (x @ model.heads.horizons[1].weight.T).mT, window[:, 3:15].long(), reduction="none"
    )
    told = dict(zip(made.columns, parts.figures, strict=True))
    assert told["mtp_k3"].item() == pytest.approx(ahead.gather(1, top).mean().item())
    assert parts.loss.item() == pytest.approx(nll.mean().item())


def test_regularisers_are_their_formulas():
    model, window = model_of(), windows()
    logits, _ = model(window[:, :-1])
    log_p = logits.log_softmax(-1)
    ce, entropy = cross_entropy(logits, window[:, 1:]), -(log_p.exp() * log_p).sum(-1).mean()
    made = Objective(ObjectiveSection(entropy_weight=0.03, label_smoothing=0.1))
    parts = made(model, window, None, None)
    smooth = torch.nn.functional.cross_entropy(logits.mT, window[:, 1:].long(), label_smoothing=0.1)
    want = smooth - 0.03 * entropy
    assert parts.objective.item() == pytest.approx(want.item()) and parts.loss.item() == pytest.approx(ce.item())
    assert_equal(gradients(model, parts.objective), gradients(model, want), atol=1e-12)


EVERYTHING = {
    "objective": {
        "use_mtp": True, "mtp_variant": "layer", "mtp_n_tokens": 3, "use_collider": True, "collider_min_dim": 0,
        "collider_scorer": "random", "collider_start_step": 5, "entropy_weight": 0.01, "label_smoothing": 0.05,
    },
    "schedule": {"type": "wsd", "warmup": 4},
    "optimizer": {"name": "adamw"},
}  # fmt: skip
CARRIED = {"carry_state": True, "grad_accum": 2, "checkpoint_every": 1}


@pytest.fixture
def queue(fused_on_the_cpu, queue):
    return queue


def test_a_captured_run_is_the_eager_run_and_is_captured_anew_where_the_filter_begins(tiny, tmp_path, queue):
    def plan(mode):
        return tiny(**EVERYTHING, train={**CARRIED, "steps": 14, "graph": mode})

    run(plan("off"), tmp_path / "eager")
    seen = Recorder()
    result = run(plan("auto"), tmp_path / "graph", seen)
    assert result["graph"] == {"used": True, "reason": None}
    assert [row["op"] for row in result["backends"]].count("filtered_linear") == 1
    assert seen.notes and all("ms dense" in note for note in seen.notes)
    # Two eager steps, three captured ones, one eager with the filter, the rest captured.
    assert [made.replays for made in queue.captured] == [3, 8]
    assert_same_run(tmp_path / "eager", tmp_path / "graph", 14)
    lines = facts(tmp_path / "graph")
    assert [line["collider_sparsity"] > 0 for line in lines] == [False] * 5 + [True] * 9
    assert all(line["objective"] != line["loss"] for line in lines)
    assert result["heads_params"] > 0


def test_an_interrupted_run_goes_on_exactly(tiny, tmp_path):
    def plan():
        return tiny(**EVERYTHING, train={**CARRIED, "steps": 12}, checkpoint={"every": 4, "keep": 9})

    run(plan(), tmp_path / "whole")
    stop = Recorder(lambda step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 10 else None)
    run(plan(), tmp_path / "parts", stop)
    assert list_checkpoints(tmp_path / "parts" / "checkpoints")[-1][0] == 8
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 12)
    assert any(name.startswith("model.heads.") for name in weights(tmp_path / "parts", 12))
    with pytest.raises(CheckpointError, match=r"train\.steps"):
        resume(tmp_path / "parts", steps=20)  # its rate was planned towards step 12


def test_pieces_of_a_batch_give_the_gradients_of_the_whole(tiny, tmp_path):
    objective = {**EVERYTHING["objective"], "collider_start_step": 0}
    for pieces in (1, 4):
        run(
            tiny(objective=objective, optimizer={"name": "adamw"}, train={"steps": 3, "grad_accum": pieces}),
            tmp_path / str(pieces),
        )
    for one, other in zip(facts(tmp_path / "1"), facts(tmp_path / "4"), strict=True):
        for key in ("loss", "objective", "grad_norm", "mtp_total"):
            assert one[key] == pytest.approx(other[key], abs=2e-5)
    one, other = weights(tmp_path / "1", 3), weights(tmp_path / "4", 3)
    heads = [name for name in one if name.startswith("model.heads")]
    assert heads and all(torch.allclose(one[name], other[name], atol=2e-5) for name in heads)


def test_what_is_off_changes_nothing(tiny, tmp_path):
    run(tiny(train={"steps": 4}), tmp_path / "plain")
    off = {"use_mtp": True, "mtp_n_tokens": 1, "use_collider": True, "collider_sparsity": 0.0, "collider_min_dim": 0}
    run(tiny(train={"steps": 4}, objective=off, loader={"workers": 2}), tmp_path / "off")
    drop = {"queue_depth", "starved_steps"}
    found = [{k: v for k, v in line.items() if k not in drop} for line in facts(tmp_path / "off")]
    assert found == facts(tmp_path / "plain")
    run(tiny(train={"steps": 4}, objective={"use_mtp": True, "mtp_weight": 0.0}), tmp_path / "weightless")
    for one, other in zip(facts(tmp_path / "weightless"), facts(tmp_path / "plain"), strict=True):
        assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_heads_are_left_behind(tiny, tmp_path):
    plan = tiny(objective={"use_mtp": True}, train={"steps": 3})
    result = run(plan, tmp_path / "r")
    model, _ = build(plan, registry())
    heads = sum(p.numel() for p in model.heads.parameters())
    assert result["params"] + heads == sum(p.numel() for p in model.parameters())
    assert result["heads_params"] == heads == 3 * 256 * 16
    loaded, _, _ = load_trained(tmp_path / "r", registry(), "cpu", print)
    assert loaded.heads is None and sum(p.numel() for p in loaded.parameters()) == result["params"]


def test_a_matched_trunk_gives_its_layers_to_the_heads(tiny, tmp_path):
    values = {"use_mtp": True, "mtp_variant": "layer", "mtp_match_params": True, "mtp_n_tokens": 3}
    plan = tiny(model={"depth": 5}, objective=values, train={"steps": 2})
    assert plan.spec.lm_cfg.depth == 3 and plan.origins()["model.depth"] == "objective.mtp_match_params"
    result = run(plan, tmp_path / "r")
    whole = tiny(model={"depth": 5}).spec.certificate.params
    assert result["params"] + result["heads_params"] == whole + 2 * 16  # a norm before each head
    resume(tmp_path / "r", steps=3)
    with pytest.raises(ConfigError, match="none to spare"):
        tiny(model={"depth": 2}, objective=values)


def test_narrow_models_are_not_filtered_unless_asked(tiny, tmp_path):
    seen = Recorder()
    run(tiny(train={"steps": 2}, objective={"use_collider": True}), tmp_path / "r", seen)
    assert "Collider is off" in seen.notes[0] and "collider_sparsity" not in seen.lines[0]


@pytest.mark.parametrize(
    "warmup", [{"schedule": {"type": "constant", "warmup": 2}}, {"optimizer": {"warmup_steps": 2}}]
)
def test_filtering_begins_after_the_warm_up(tiny, tmp_path, warmup):
    sections = {"optimizer": {"name": "adamw"}, **warmup}
    seen = Recorder()
    run(tiny(train={"steps": 4}, objective={"use_collider": True, "collider_min_dim": 0}, **sections), tmp_path, seen)
    assert [line["collider_sparsity"] > 0 for line in seen.lines] == [False, False, True, True]


def test_excess_scores_by_a_run(tiny, tmp_path):
    run(tiny(train={"steps": 2}), tmp_path / "reference")
    values = {"use_collider": True, "collider_min_dim": 0, "collider_scorer": "excess"}
    with pytest.raises(ConfigError, match="need each other"):
        tiny(objective=values)
    values["collider_reference"] = str(tmp_path / "reference")
    seen = Recorder()
    run(tiny(train={"steps": 2}, objective=values), tmp_path / "r", seen)
    assert seen.lines[0]["collider_sparsity"] == pytest.approx(0.35, abs=1 / 16)
    assert str(tmp_path / "reference") in (tmp_path / "r" / "config.toml").read_text()
    assert not any("reference" in name for name in weights(tmp_path / "r", 2))


def test_a_run_from_before_these_sections_goes_on(tiny, tmp_path):
    plan = tiny(train={"steps": 4}, checkpoint={"every": 2})
    run(plan, tmp_path / "r")
    saved = load_checkpoint(tmp_path / "r" / "checkpoints" / "step_4")
    assert not any(key.startswith(("objective", "schedule")) for key in saved.state["identity"])
    text = (tmp_path / "r" / "config.toml").read_text()
    young = ("objective", "schedule", "loader")
    tables = [table for table in text.split("\n[") if not table.startswith(young)]
    lines = [line for line in "\n[".join(tables).split("\n") if not line.startswith(tuple(f'"{y}.' for y in young))]
    (tmp_path / "r" / "config.toml").write_text("\n".join(lines))
    assert resume(tmp_path / "r", steps=5)["steps"] == 5
    assert json.loads((tmp_path / "r" / "result.json").read_text())["heads_params"] == 0
