"""How a new model starts: deterministic in the seed, distinct experts, gates small, streams kept."""

import pytest
import torch

from dsv4.model.hyper_connection import enter
from dsv4.model.init import GATE_INIT, init_weights
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config


def test_what_memory_held_before_does_not_matter() -> None:
    model = Transformer(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    init_weights(model, 0)
    assert not [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]


def test_the_seed_decides_every_value() -> None:
    one, again, other = (init_weights(Transformer(tiny_config()), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    matrices = [name for name in one if name.endswith(("proj.weight", "w1.weight", "wkv.weight", "tid2eid", "_fn"))]
    assert matrices
    assert not [name for name in matrices if torch.equal(one[name], other[name])]


def test_the_global_random_state_does_not_matter() -> None:
    torch.manual_seed(1)
    one = init_weights(Transformer(tiny_config())).state_dict()
    torch.manual_seed(2)
    other = init_weights(Transformer(tiny_config())).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_model_computes_finite_logits() -> None:
    model = init_weights(Transformer(tiny_config()), 0)
    tokens = torch.randint(0, 97, (140,))
    with torch.no_grad():
        logits = model.logits(model.hidden(tokens, model.pack([140])))
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10


def test_the_experts_of_a_token_are_distinct_and_all_are_used() -> None:
    config = tiny_config(num_hash_layers=2, num_experts_per_tok=3)
    model = init_weights(Transformer(config), 0)
    for layer in (0, 1):
        table = model.layers[layer].ffn.gate.tid2eid
        assert all(len(set(row)) == 3 for row in table.tolist())
        counts = torch.bincount(table.flatten(), minlength=config.n_routed_experts)
        mean = config.vocab_size * 3 / config.n_routed_experts
        assert counts.min() > mean / 2
        assert counts.max() < mean * 2
    assert not torch.equal(model.layers[0].ffn.gate.tid2eid, model.layers[1].ffn.gate.tid2eid)


def test_hyper_connections_start_near_read_one_write_all_keep_all() -> None:
    config = tiny_config()
    model = init_weights(Transformer(config), 0)
    x_TSD = torch.randn(5, config.hc_mult, config.hidden_size)
    read = []
    for block in model.layers:
        for name in ("attn", "ffn"):
            fn, scale, base = (getattr(block, f"hc_{name}_{part}") for part in ("fn", "scale", "base"))
            with torch.no_grad():
                y_TD, post_TS, comb_TSS = enter(x_TSD, fn, scale, base, config)
            assert (scale == GATE_INIT).all()
            torch.testing.assert_close(post_TS, torch.ones_like(post_TS), atol=0.05, rtol=0)
            assert comb_TSS.diagonal(dim1=1, dim2=2).min() > 0.8
            along = [float(torch.cosine_similarity(y_TD, x_TSD[:, s], dim=1).mean()) for s in range(config.hc_mult)]
            read.append(max(range(config.hc_mult), key=lambda s, along=along: along[s]))
    assert read == [0, 1, 2, 3] * 2  # the streams take turns


@pytest.mark.parametrize("name", ["wo_b.weight", "w2.weight"])
def test_what_writes_to_the_streams_is_damped_by_depth(name: str) -> None:
    model = init_weights(Transformer(tiny_config()), 0)
    for key, parameter in model.named_parameters():
        if key.endswith(name):
            wanted = parameter.shape[1] ** -0.5 * (2 * model.config.num_hidden_layers) ** -0.5
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.1), key
