"""Anticipatory routing: ids of old parameters, weights of new ones; a provoked spike is survived (report 4.4)."""

from collections.abc import Sequence

import pytest
import torch

from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.anticipate import BatchQueue, Routes, routes_of
from dsv4.training.batch import Batch
from dsv4.training.clipping import clip_gradients
from dsv4.training.loss import compute_loss
from dsv4.training.param_groups import make_optimizers
from dsv4.training.recovery import Diverged, Recovery
from dsv4.training.schedule import Phase
from dsv4.training.settings import RecoverySettings
from dsv4.training.spikes import Spike, SpikeDetector
from dsv4.training.states import capture_state, restore_state
from tests.training.runs import numbers

LEARNED = [1, 2, 3, 4]  # layer 0 routes by a table, 4 is the prediction block


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(torch.randint(0, 97, (40,), generator=generator), (30, 10), torch.ones(40))


def equal(one: Routes, other: Routes) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[layer], other[layer]) for layer in one)


@pytest.mark.parametrize("phase", [Phase.DENSE, Phase.SPARSE])
def test_given_routes_replace_the_choice_but_not_the_weights(phase: Phase) -> None:
    model, batch = tiny_model().train(), batch_of(0)
    routes = routes_of(model, batch, phase)
    assert sorted(routes) == LEARNED
    assert numbers(compute_loss(model, batch, phase=phase)) == pytest.approx(
        numbers(compute_loss(model, batch, phase=phase, routes=routes)), abs=1e-5
    )
    others = {layer: (ids + 1) % 8 for layer, ids in routes.items()}
    losses = compute_loss(model, batch, phase=phase, routes=others)
    for layer, ids in others.items():
        assert torch.equal(losses.load[layer], torch.bincount(ids.flatten(), minlength=8).float())
    losses.total.backward()
    gate = model.layers[2].ffn.gate
    assert float(gate.weight.grad.abs().max()) > 0
    # today's affinities of the given experts, not yesterday's
    x, tokens = torch.randn(3, 64), torch.zeros(3, dtype=torch.int64)
    ids = torch.tensor([[5, 1], [0, 7], [3, 2]])
    score, used, weight = gate(x, tokens, ids)
    assert torch.equal(used, ids)
    chosen = score.gather(1, ids)
    torch.testing.assert_close(weight, chosen / chosen.sum(1, keepdim=True) * model.config.routed_scaling_factor)


def test_ids_are_those_of_the_parameters_delay_steps_ago() -> None:
    model, delay = tiny_model().train(), 3
    optimizers = make_optimizers(model.config, model.named_parameters(), lr=0.02)
    queue = BatchQueue(lambda step: [batch_of(step)], lambda batch: routes_of(model, batch), delay)
    history: list[dict[str, torch.Tensor]] = []
    changed = 0
    for step in range(9):
        history.append({name: value.clone() for name, value in model.state_dict().items()})
        (part,) = queue.take(step, anticipating=True)
        assert part.routes is not None
        old = tiny_model()
        old.load_state_dict(history[max(0, step - delay)])
        assert equal(part.routes, routes_of(old, part.batch))
        changed += not equal(part.routes, routes_of(model, part.batch))
        optimizers.zero_grad()
        compute_loss(model, part.batch, routes=part.routes).total.backward()
        optimizers.step()
    assert changed >= 5  # the parameters of today would often have chosen otherwise
    assert queue.take(9, anticipating=False)[0].routes is None
    assert queue.take(10, anticipating=True)[0].routes is not None


def test_switching_off_and_going_back_prepare_anew() -> None:
    fetched: list[int] = []

    def fetch(step: int) -> Sequence[Batch]:
        fetched.append(step)
        return [batch_of(step)]

    queue = BatchQueue(fetch, lambda batch: {}, delay=2)
    queue.take(5, True)
    queue.take(6, True)
    queue.clear()
    queue.take(4, True)
    assert fetched == [5, 6, 7, 8, 4, 5, 6]
    with pytest.raises(ValueError, match="delay must be at least 1 step, got 0"):
        BatchQueue(fetch, lambda batch: {}, delay=0)


class Run:
    """The smallest trainer there is; `poison` breaks the experts before a step, once."""

    def __init__(self, model: Transformer, settings: RecoverySettings, poison: set[int]) -> None:
        self.model, self.poison = model, poison
        self.optimizers = make_optimizers(model.config, model.named_parameters(), lr=2e-3)
        self.recovery = Recovery(
            SpikeDetector(minimum=4, threshold=6),
            lambda: capture_state(model, self.optimizers),
            lambda state: restore_state(model, self.optimizers, state),
            settings,
        )
        self.queue = BatchQueue(lambda step: [batch_of(step % 4)], lambda batch: routes_of(model, batch), delay=2)
        self.trace: list[tuple[int, bool]] = []
        self.weights: dict[int, torch.Tensor] = {}

    def advance(self, steps: int) -> None:
        step = 0
        while step < steps:
            self.recovery.before_step(step)
            self.weights.setdefault(step, self.model.layers[1].attn.wkv.weight.detach().clone())
            if step in self.poison:
                self.poison.discard(step)
                with torch.no_grad():
                    self.model.head.weight *= 40
            (part,) = self.queue.take(step, self.recovery.anticipating(step))
            self.trace.append((step, part.routes is not None))
            self.optimizers.zero_grad()
            losses = compute_loss(self.model, part.batch, routes=part.routes)
            losses.total.backward()
            norm = clip_gradients(self.model.parameters(), 1.0)
            back = self.recovery.judge(step, loss=float(losses.parts["next"]), grad_norm=norm)
            if back is not None:
                step = back
                assert torch.equal(self.model.layers[1].attn.wkv.weight, self.weights[back])
                self.queue.clear()
                continue
            self.optimizers.step()
            step += 1


def small() -> Transformer:
    return tiny_model(tiny_config(num_hidden_layers=2, compress_ratios=(0, 4, 0))).train()


def test_a_provoked_spike_goes_back_switches_the_mode_on_and_later_off() -> None:
    settings = RecoverySettings(snapshot_every=3, snapshots=2, margin=1, hold=4)
    run = Run(small(), settings, {10})
    run.advance(18)
    steps = [step for step, _ in run.trace]
    assert steps == [*range(11), *range(9, 18)]  # back to the snapshot of step 9
    modes = [mode for _, mode in run.trace]
    assert modes == [False] * 11 + [True] * 5 + [False] * 4  # steps 9 to 13, four beyond the spike's
    assert [spike.step for spike in run.recovery.spikes] == [10]
    assert torch.isfinite(run.model.head.weight).all()


def test_a_snapshot_too_near_the_spike_is_not_trusted() -> None:
    run = Run(small(), RecoverySettings(snapshot_every=3, snapshots=2, margin=3, hold=2), {10})
    run.advance(12)
    assert [step for step, _ in run.trace][11] == 6


def test_a_run_that_keeps_spiking_is_given_up() -> None:
    run = Run(small(), RecoverySettings(snapshot_every=2, margin=0, hold=6, attempts=2), set())
    run.recovery.detector.check = lambda step, **values: (  # type: ignore[method-assign]
        SpikeDetector.check(SpikeDetector(), step, loss=float("nan")) if step == 3 else None
    )
    with pytest.raises(Diverged, match=r"step 3: loss nan .* 2 returns to a snapshot did not help"):
        run.advance(8)
    assert [step for step, _ in run.trace] == [0, 1, 2, 3, 2, 3, 2, 3]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_batch_that_spikes_again_with_finite_values_is_let_pass(name: str) -> None:
    run = Run(small(), RecoverySettings(snapshot_every=2, margin=0, hold=3, attempts=2), set())
    run.recovery.detector.check = lambda step, **values: (  # type: ignore[method-assign]
        Spike(step, name, 9.0, 1.0) if step in (3, 6) else None
    )
    run.advance(9)
    assert [step for step, _ in run.trace] == [0, 1, 2, 3, 2, 3, 4, 5, 6, 6, 7, 8]
    assert [spike.step for spike in run.recovery.spikes] == [3, 6]


def test_a_loss_that_jumps_at_ever_other_steps_ends_the_run() -> None:
    run = Run(small(), RecoverySettings(snapshot_every=2, margin=0, hold=6, attempts=2), set())
    run.recovery.detector.check = lambda step, **values: (  # type: ignore[method-assign]
        Spike(step, "loss", 9.0, 1.0) if step >= 3 else None
    )
    with pytest.raises(Diverged, match=r"step 5: loss 9 is above 1; 2 returns to a snapshot did not help"):
        run.advance(9)
    assert [step for step, _ in run.trace] == [0, 1, 2, 3, 2, 3, 4, 4, 5]


def heavy_tailed_norms(steps: int) -> list[float]:
    """Gradient norms of small, mixed batches: calm, but one step in 20 is 3 to 30 times above the others."""
    generator = torch.Generator().manual_seed(0)
    calm = 0.6 + 0.05 * torch.randn(steps, generator=generator)
    peaks = 3 * 10 ** torch.rand(steps, generator=generator)
    return torch.where(torch.rand(steps, generator=generator) < 0.05, calm * peaks, calm).tolist()


@pytest.mark.parametrize("settings", [RecoverySettings(), RecoverySettings(hold=1, attempts=1, snapshot_every=40)])
def test_gradient_norms_with_a_heavy_tail_do_not_end_a_run(settings: RecoverySettings) -> None:
    steps = 2000
    norms = heavy_tailed_norms(steps)
    state = {"step": -1}
    recovery = Recovery(SpikeDetector(), lambda: dict(state), state.update, settings)
    step = calls = 0
    while step < steps:
        recovery.before_step(step)
        calls += 1
        back = recovery.judge(step, loss=5 - step / steps, grad_norm=norms[step])
        if back is not None:
            assert state["step"] == back - 1
            step = back
            continue
        state["step"], step = step, step + 1
    assert recovery.spikes  # the sequence does exceed the detector's limits
    assert len(recovery.spikes) <= 12
    assert calls < 1.25 * steps
    for _ in range(settings.attempts):
        assert recovery.judge(steps, loss=4.0, grad_norm=float("inf")) is not None
    with pytest.raises(Diverged, match="grad_norm inf"):
        recovery.judge(steps, loss=4.0, grad_norm=float("inf"))


def test_state_of_a_recovery_survives_a_restart() -> None:
    run = Run(small(), RecoverySettings(snapshot_every=3, margin=1, hold=4), {6})
    run.advance(7)
    fresh = Run(run.model, run.recovery.settings, set())
    fresh.recovery.load_state_dict(run.recovery.state_dict())
    assert [fresh.recovery.anticipating(step) for step in (6, 9, 10)] == [True, True, False]
    assert fresh.recovery.detector.limit("loss") == run.recovery.detector.limit("loss")


def test_snapshots_are_copies_and_come_back_bit_for_bit() -> None:
    model = small()
    optimizers = make_optimizers(model.config, model.named_parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizers.zero_grad()
        compute_loss(model, batch_of(number)).total.backward()
        optimizers.step()

    step(0)
    state = capture_state(model, optimizers)
    for _ in range(2):
        step(1)
        step(2)
        after = {name: value.clone() for name, value in model.state_dict().items()}
        restore_state(model, optimizers, state)
        step(1)
        step(2)
        assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
        restore_state(model, optimizers, state)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="hold must be at least 1, got 0"):
        RecoverySettings(hold=0)
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        RecoverySettings(margin=-1)
