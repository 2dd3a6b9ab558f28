"""Gloo processes against one process: started once for many checks, every check a test of its own."""

import pytest

from tests.distributed import checks_checkpoint as saved
from tests.distributed import checks_context as context
from tests.distributed import checks_experts as experts
from tests.distributed import checks_four as four
from tests.distributed import checks_qat as qat
from tests.distributed import checks_two as two
from tests.distributed.ranks import Check, Outcome, run

# in this order: later groups read what earlier ones wrote
GROUPS: dict[str, tuple[int, list[Check]]] = {
    "one": (1, [saved.one_writes]),
    "killed": (2, [saved.one_is_killed]),
    "two": (
        2,
        [
            two.mesh_says_what_is_wrong,
            two.rows_travel_with_gradients,
            two.gradients_are_summed_and_missing_ones_stay,
            two.plain_data_parallel_equals_one_process,
            two.each_matrix_has_one_owner,
            two.shards_equal_one_process,
            two.data_parallel_in_integers_equals_one_process,
            two.shards_in_integers_equal_one_process,
            experts.dispatch_matches_one_process,
            experts.experts_keep_their_names,
            context.the_rule_is_told,
            context.one_step_agrees_in_values_and_gradients,
            context.split_documents_equal_one_process,
            saved.going_back_restores_every_bit,
            saved.resumed_is_uninterrupted,
            saved.goes_on_after_the_kill,
            saved.two_write,
            qat.rows_are_cast_in_the_blocks_of_the_whole_matrix,
            qat.quantised_shards_routed_ahead,
        ],
    ),
    "four": (
        4,
        [
            saved.four_read_what_one_wrote,
            saved.four_write,
            four.shards_and_experts,
            four.shards_and_experts_in_integers,
            four.shards_and_documents_routed_ahead,
            four.experts_and_documents,
            four.a_rank_without_tokens_for_its_experts,
        ],
    ),
    "two again": (2, [saved.two_read_what_four_wrote]),
    "one again": (1, [saved.one_reads_what_two_wrote]),
}
SLOW: dict[int, list[Check]] = {
    2: [
        two.bf16_with_masters_trains,
        experts.split_experts_equal_one_process,
        qat.quantised_copies,
        qat.quantised_shards,
        qat.quantised_experts,
        qat.quantised_documents,
        qat.quantised_shards_with_masters,
    ],
    4: [
        qat.rows_are_cast_in_the_blocks_of_the_whole_matrix,
        qat.quantised_shards_of_four,
        qat.quantised_shards_and_experts,
        qat.quantised_shards_and_documents_routed_ahead,
    ],
}
CHECKS = [(group, check) for group, (_, checks) in GROUPS.items() if group != "killed" for check in checks]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    base = tmp_path_factory.mktemp("ranks")
    found = {}
    for group, (world, checks) in GROUPS.items():
        (base / group).mkdir()
        found[group] = run(world, base / group, checks)
    return found


@pytest.mark.parametrize(("group", "check"), CHECKS, ids=[check.__name__ for _, check in CHECKS])
def test_ranks(outcomes: dict[str, Outcome], group: str, check: Check) -> None:
    outcomes[group].expect(check)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    return {world: run(world, tmp_path_factory.mktemp("slow"), checks) for world, checks in SLOW.items()}


SLOW_CHECKS = [(world, check) for world, checks in SLOW.items() for check in checks]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "check"), SLOW_CHECKS, ids=[check.__name__ for _, check in SLOW_CHECKS])
def test_ranks_slowly(slow: dict[int, Outcome], world: int, check: Check) -> None:
    slow[world].expect(check)


def test_a_killed_rank_is_noticed(outcomes: dict[str, Outcome]) -> None:
    place = outcomes["killed"].folder / saved.one_is_killed.__name__
    assert (place / "killed").exists()
    assert (place / "told").exists(), [p.read_text() for p in outcomes["killed"].folder.glob("*.failed")]
