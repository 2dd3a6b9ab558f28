"""A plan as lines for people."""

from dsv4.files import size_text
from dsv4.planning.plan import EnginePlan
from dsv4.planning.rates import Rates


def short_lines(plan: EnginePlan, rates: Rates | None) -> list[str]:
    """What a command says before it loads a model: numerics, memory, and speed where it was measured."""
    experts = size_text(plan.experts_in_memory)
    if plan.streamed:
        experts += f" of {size_text(plan.experts)}, the others read from disk"
    dense = plan.weights.mapped + plan.weights.made
    lines = [
        f"{plan.model}: mode {plan.mode} ({plan.why}), context {plan.context:,} tokens",
        f"memory: up to {size_text(plan.peak)} of {_free(plan)}: weights {size_text(dense)}, experts {experts}, "
        f"cache {size_text(plan.cache.bytes)}, work {size_text(plan.working)}",
    ]
    if rates is not None:
        lines.append(_speed(plan, rates))
    return lines + notes(plan)


def long_lines(plan: EnginePlan, rates: Rates | None, numa: str = "") -> list[str]:
    """All of a plan, one fact a line; the bound on speed where rates were measured. numa: where the model is placed."""
    w, cache = plan.weights, plan.cache
    dense = f"{size_text(w.mapped + w.made)}: {size_text(w.mapped)} used in place, {size_text(w.made)} converted"
    rows = [
        ("model", f"{plan.model}, {size_text(plan.stored)} in {plan.tensors:,} tensors ({plan.layout} layout)"),
        ("mode", f"{plan.mode}: {plan.why}"),
        ("weights", dense),
        ("experts", _experts(plan)),
        (
            "cache",
            f"up to {size_text(cache.bytes)} for {cache.tokens:,} tokens in {plan.cache_dtype} rows: context "
            f"{plan.context:,}, {cache.sequences} at the same time, {cache.snapshots} kept prefixes",
        ),
        ("work", f"{size_text(plan.working)} for the buffers of a step and the objects of the model"),
        ("peak", f"{size_text(plan.peak)} of {_free(plan)}"),
        ("token", f"reads {size_text(plan.read_per_token)} of weights, {size_text(plan.disk_per_token)} from disk"),
    ]
    rows += [("numa", numa)] if numa else []
    lines = [f"{name:<8} {text}" for name, text in rows]
    speed = [] if rates is None else [_speed(plan, rates).replace("speed: ", f"{'speed':<8} ")]
    return [*lines, *speed, *notes(plan)]


def notes(plan: EnginePlan) -> list[str]:
    """Sentences about what makes this plan slow."""
    found = []
    if not plan.dense_fits:
        missing = plan.fixed + plan.weights.mapped + (plan.expert_memory or 0) - plan.free
        found.append(
            f"note: memory is {size_text(missing)} short of the weights that every token needs: "
            "the system reads them from disk again and again"
        )
    if plan.streamed and plan.expert_memory is None:
        found.append("note: no limit is set for the experts, so the system decides which of them stay in memory")
    return found


def _free(plan: EnginePlan) -> str:
    where = f" on {plan.device}" if plan.device != "cpu" else ""
    return f"{size_text(plan.free)} free{where}" + (" (limit of the container)" if plan.container else "")


def _experts(plan: EnginePlan) -> str:
    if not plan.streamed:
        return f"{size_text(plan.experts)}, all in memory"
    share = plan.experts_in_memory / plan.experts
    return (
        f"{size_text(plan.experts_in_memory)} of {size_text(plan.experts)} in memory ({share:.1%}); they do not fit, "
        "so the others are read from disk when they are chosen"
    )


def _speed(plan: EnginePlan, rates: Rates) -> str:
    """The bound, and what it is made of."""
    most = rates.most_tokens(plan)
    disk = "disk not measured" if rates.disk is None else f"disk {rates.disk / 1e9:.2f} GB/s"
    if rates.elsewhere and rates.disk is not None:
        disk += " where torch is installed; the model may come to lie on another"
    bound = (
        "unknown, because the disk cannot be measured"
        if most is None
        else f"at most {_figure(most)} tokens/s for one sequence"
    )
    reads = f"{size_text(plan.read_per_token)} a token from memory"
    if plan.disk_per_token:
        reads += f", {size_text(plan.disk_per_token)} of them from disk first"
    return f"speed: {bound} ({reads}; memory {rates.memory / 1e9:.1f} GB/s, {disk})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
