"""A constrained answer as a sequence of requests.

A back end has grammars that begin with the request, but none of ours that begin after a token, limit the reasoning, or
forbid a token in one part only. So an answer is asked for in parts: each request ends at the token that ends its part,
and the next one continues the prompt with all that was said, which the back end finds in its prefix cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dsv4.generation import ConstraintFactory, ConstraintStage, StagedConstraint, WrittenGrammar


def stages_of(
    constraint: ConstraintFactory | None, stop_ids: Sequence[int] = (), ends: Sequence[int] = ()
) -> tuple[ConstraintStage, ...]:
    """The parts of an answer under a constraint; the last has no `until`. stop_ids: end tokens that the constraint
    knows; ends: further ones of the model, which a part that cannot hold those cannot hold either. Raises ValueError
    for a constraint that cannot be asked of another program."""
    if constraint is None:  # an isinstance of a protocol costs 11 to 17 us
        return (ConstraintStage(),)
    whole = constraint.stages() if isinstance(constraint, StagedConstraint) else (ConstraintStage(grammar=constraint),)
    found = tuple(_without(part, stop_ids, ends) for stage in whole for part in _unfolded(stage))
    return found if found[-1].until is None else (*found, ConstraintStage())


def _without(stage: ConstraintStage, stop_ids: Sequence[int], ends: Sequence[int]) -> ConstraintStage:
    if not stop_ids or not {*stop_ids} <= {*stage.banned}:
        return stage
    return replace(stage, banned=tuple(dict.fromkeys((*stage.banned, *ends))))


def _unfolded(stage: ConstraintStage) -> Iterator[ConstraintStage]:
    """A grammar that begins after a token is two parts."""
    grammar = stage.grammar
    if grammar is not None and not isinstance(grammar, WrittenGrammar):
        raise ValueError("constraint: this constraint cannot be asked of another engine")
    if grammar is not None and grammar.trigger is not None:
        if stage.until is not None:
            raise ValueError("constraint: a part that ends with a token holds a grammar that begins after one")
        yield ConstraintStage(grammar.trigger, None, stage.banned)
        stage = replace(stage, grammar=grammar.at_once())
    yield stage
