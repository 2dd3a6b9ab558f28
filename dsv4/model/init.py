"""How a new model starts. The report does not publish its initialisation; the choices are in docs/log.md."""

import torch
from torch import nn

from dsv4.model.block import Block
from dsv4.model.layers import Linear, RMSNorm
from dsv4.model.moe import Gate
from dsv4.model.transformer import Transformer

GATE_INIT = 0.01  # the mHC paper's "gating factor init"
MARKOV_INIT = 0.1  # a new draft head hardly looks at the token before
_OPEN, _CLOSED, _DIAGONAL = 1.0, -2.0, 3.0


@torch.no_grad()
def init_weights(model: Transformer, seed: int = 0) -> Transformer:
    """Fill every parameter in place, deterministically from `seed`; returns the model.

    Matrices are normal with std 1/sqrt(inputs), those that write to the residual streams smaller by
    sqrt(2 * layers). Hyper-connections start near "read one stream, write all, keep all".
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.zero_()  # biases, sinks and position biases stay so
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.normal_(0, module.inputs**-0.5, generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1)
        elif isinstance(module, Gate):
            _init_gate(module, generator)
    model.embed.weight.normal_(0, 0.5, generator=generator)
    damping = (2 * model.config.num_hidden_layers) ** -0.5
    for index, block in enumerate(model.blocks):
        _init_connections(block, index, generator)
        block.attn.wo_b.weight.mul_(damping)
        for expert in block.ffn.all_experts:
            expert.w2.weight.mul_(damping)
    for stage in model.stages[-1:]:
        stage.markov_head.markov_w1.weight.normal_(0, MARKOV_INIT, generator=generator)
    for owner in [model, *model.predictors, *model.stages[-1:]]:
        owner.hc_head_fn.normal_(0, owner.hc_head_fn.shape[1] ** -0.5, generator=generator)
        owner.hc_head_scale.fill_(GATE_INIT)
    return model


def _init_gate(gate: Gate, generator: torch.Generator) -> None:
    gate.weight.normal_(0, gate.weight.shape[1] ** -0.5, generator=generator)
    if gate.tid2eid is not None:
        experts, chosen = gate.weight.shape[0], gate.tid2eid.shape[1]
        draw = torch.rand(gate.tid2eid.shape[0], experts, generator=generator)
        gate.tid2eid.copy_(draw.argsort(dim=1)[:, :chosen])  # distinct experts, each equally likely


def _init_connections(block: Block, index: int, generator: torch.Generator) -> None:
    streams = block.config.hc_mult
    for which, name in enumerate(("attn", "ffn")):
        fn: nn.Parameter = getattr(block, f"hc_{name}_fn")
        base: nn.Parameter = getattr(block, f"hc_{name}_base")
        fn.normal_(0, fn.shape[1] ** -0.5, generator=generator)
        getattr(block, f"hc_{name}_scale").fill_(GATE_INIT)
        pre = torch.full((streams,), _CLOSED)
        pre[(2 * index + which) % streams] = _OPEN
        base.copy_(torch.cat([pre, torch.zeros(streams), (_DIAGONAL * torch.eye(streams)).flatten()]))
