"""Teachers on the disk: their states are what the model computes, at most so many are in memory, faults are named."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.checkpoint import save_checkpoint
from dsv4.checkpoint.names import FP32
from dsv4.encoding import Tokenizer, train_bpe
from dsv4.posttraining import teachers as module
from dsv4.posttraining.policy import learned_rows
from dsv4.posttraining.teachers import Teachers
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch

SEEDS = (0, 1, 2)
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "compress_ratios": (0, 4), "num_nextn_predict_layers": 0}


def folders(place: Path, **changes: Any) -> list[Path]:
    """A folder a seed; the last as a finished run leaves it."""
    made = []
    for seed in SEEDS:
        folder = place / f"teacher{seed}"
        target = folder / "model" if seed == SEEDS[-1] else folder
        model = tiny_model(tiny_config(**{**SMALL, **changes}), seed=seed)
        save_checkpoint(target, model.config, model.state_dict(), FP32)
        made.append(folder)
    return made


def batches(count: int) -> list[Batch]:
    made = torch.Generator().manual_seed(0)
    lengths = [(20 + i, 7) for i in range(count)]
    return [
        Batch(torch.randint(0, 97, (sum(n),), generator=made), n, (torch.arange(sum(n)) % 3 > 0).float())
        for n in lengths
    ]


@pytest.mark.parametrize("resident", [1, 2])
def test_cached_rows_are_those_of_the_teacher(resident: int, tmp_path: Path) -> None:
    made, parts, order = (
        Teachers(folders(tmp_path), 97, tmp_path / "cache", resident=resident),
        batches(4),
        [0, 1, 1, 2],
    )
    found = made.cache(parts, order)
    for batch, teacher, rows in zip(parts, order, found, strict=True):
        model = tiny_model(tiny_config(**SMALL), seed=SEEDS[teacher])
        with torch.no_grad():
            wanted = learned_rows(model, batch)[1]
        assert torch.equal(rows.read(), wanted)
        assert torch.equal(made.head(teacher), model.head.weight)
    assert made.loads == 3
    made.clear()
    assert not list((tmp_path / "cache").iterdir())


def test_no_more_teachers_are_in_memory_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, paths = 0, folders(tmp_path)
    for resident in (1, 2):
        made = Teachers(paths, 97, tmp_path / "cache", resident=resident)
        load, most = made._load, 0

        def counted(teacher: int, made: Teachers = made, load: Any = load) -> Any:
            nonlocal most
            most = max(most, len(made._models) + 1)
            return load(teacher)

        monkeypatch.setattr(made, "_load", counted)
        for _ in range(2):
            made.cache(batches(3), [0, 1, 2])
        assert most == resident


def test_heads_are_loaded_once_where_batches_follow_their_teachers(tmp_path: Path) -> None:
    made = Teachers(folders(tmp_path), 97, tmp_path / "cache")
    for teacher in (0, 0, 1, 1, 1, 2):
        made.head(teacher)
    assert made.head_loads == 3


def test_bf16_files_are_half_as_large(tmp_path: Path) -> None:
    paths, parts = folders(tmp_path), batches(1)
    wide = Teachers(paths, 97, tmp_path / "wide").cache(parts, [1])[0]
    narrow = Teachers(paths, 97, tmp_path / "narrow", width=torch.bfloat16).cache(parts, [1])[0]
    assert torch.equal(narrow.read(), wide.read().bfloat16())
    assert 2 * narrow.file.stat().st_size == wide.file.stat().st_size


def test_another_vocabulary_is_refused_with_both_named(tmp_path: Path) -> None:
    path = folders(tmp_path)[0]
    with pytest.raises(ValueError, match=r"teacher .*teacher0 has 97 ids, the student 400"):
        Teachers([path], 400, tmp_path / "cache")


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Ids would mean other texts, and no shape would show it."""
    size = tokenizer.vocab_size
    paths = folders(tmp_path, vocab_size=size)
    other = train_bpe(
        ["quite another text about kings, queens and castles by the sea; " * 30], size, tmp_path / "other"
    )
    assert other.vocab_size == size
    for path, own in zip(paths, (tokenizer, other), strict=False):
        (path / "tokenizer.json").write_text(own.definition_json())
    Teachers(paths[:1], size, tmp_path / "cache", student=tokenizer)
    with pytest.raises(ValueError, match="teacher1 has another tokenizer than the student"):
        Teachers(paths[:2], size, tmp_path / "cache", student=tokenizer)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        Teachers([tmp_path / "nothing"], 97, tmp_path / "cache")


def test_a_full_disk_is_an_error_with_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, parts = Teachers(folders(tmp_path), 97, tmp_path / "cache"), batches(2)
    plain = module._rows

    def full(model: Any, batch: Batch) -> Any:
        if batch is parts[1]:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cache"))
        return plain(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_rows", full)
        with pytest.raises(OSError, match="No space left on device"):
            made.cache(parts, [0, 0])
    assert not list((tmp_path / "cache").iterdir())
    assert len(made.cache(parts, [0, 0])) == 2  # and goes on where there is room again


def test_files_of_a_killed_run_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "teacher-0.rows.tmp").write_bytes(b"half")
    Teachers(folders(tmp_path), 97, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
