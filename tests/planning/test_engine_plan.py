"""The plan of a model: what it decides for how much memory, and what it refuses. Fake limits, tiny folders."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import dsv4
from dsv4.checkpoint import LAYOUTS, Layout, open_folder, save_checkpoint
from dsv4.config import Mode, ModelConfig
from dsv4.kernels import native
from dsv4.planning import memory
from dsv4.planning.files import ModelFiles
from dsv4.planning.numerics import choose_mode
from dsv4.planning.plan import EngineRequest, make_plan
from dsv4.planning.rates import Rates, disk_rate, measure
from dsv4.planning.text import long_lines, short_lines
from dsv4.planning.weights import weight_bytes
from dsv4.testing.tiny import tiny_config, tiny_draft_config, tiny_model
from tests.conftest import ROOT

GIB = 2**30
RATES = Rates(10e9, 2e9)
FLASH = ModelFiles.of_config("flash", ModelConfig.from_file(ROOT / "dsv4" / "configs" / "flash.json"))
ONE = EngineRequest(sequences=1)
needs_native = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")


def saved(folder: Path, layout: Layout) -> ModelFiles:
    """A tiny model's files in a layout."""
    config = tiny_config(
        quantized=layout.linears == "fp8", expert_dtype=layout.experts if layout.linears == "fp8" else None
    )
    save_checkpoint(folder, config, tiny_model(config).state_dict(), layout)
    opened = open_folder(folder)
    return ModelFiles.of_folder("tiny", opened.config, opened.reader)


@pytest.mark.parametrize(
    ("layout", "mode"), [("release", "release"), ("base", "release"), ("bf16", "bf16"), ("fp32", "fp32")]
)
def test_auto_is_the_numerics_of_the_files(layout: str, mode: Mode, tmp_path: Path) -> None:
    files = saved(tmp_path / "m", LAYOUTS[layout])
    chosen, why = choose_mode(files.config, files.layout, files.specs)
    assert chosen == mode
    assert why.startswith("the weights are stored in ")
    assert dsv4.load(tmp_path / "m", context_length=64, sequences=1).mode == mode


def test_auto_avoids_numerics_that_the_shapes_forbid() -> None:
    config = FLASH.config.with_changes(index_head_dim=16, qk_rope_head_dim=16)
    chosen, why = choose_mode(config, FLASH.layout, FLASH.specs)
    assert chosen == "bf16"
    assert "index_head_dim must be a multiple of 32" in why


@pytest.mark.parametrize("layout", ["release", "base", "bf16", "fp32"])
@pytest.mark.parametrize("mode", ["release", "bf16", "fp32"])
def test_bytes_of_weights_are_those_of_the_loaded_model(layout: str, mode: Mode, tmp_path: Path) -> None:
    """All of them, and which of them lie in the maps of the files."""
    files = saved(tmp_path / "m", LAYOUTS[layout])
    planned = weight_bytes(files, mode, predict=True)
    model = dsv4.load(tmp_path / "m", mode, context_length=64, sequences=1).model
    maps = _maps()
    mapped = made = 0
    for tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.values():
        size = tensor.numel() * tensor.element_size()
        if any(begin <= tensor.data_ptr() < end for begin, end in maps):
            mapped += size
        else:
            made += size
    assert planned.mapped + planned.experts_mapped == mapped
    assert planned.made + planned.experts_made == made


def _maps() -> list[tuple[int, int]]:
    """Where files of weights are mapped in this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            begin, end = line.split()[0].split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def test_everything_stays_in_memory_where_it_fits() -> None:
    plan = make_plan(FLASH, ONE, 256 * GIB)
    assert (plan.mode, plan.expert_memory, plan.streamed, plan.disk_per_token) == ("release", None, False, 0)
    assert plan.experts_in_memory == plan.experts
    assert plan.peak <= 0.95 * plan.free
    assert not [line for line in short_lines(plan, RATES) if line.startswith("note")]


@needs_native
@pytest.mark.parametrize("free", [12, 16, 24, 48, 96])
def test_experts_that_do_not_fit_are_streamed(free: int) -> None:
    plan = make_plan(FLASH, ONE, free * GIB)
    assert plan.expert_memory is not None
    assert plan.streamed
    assert plan.dense_fits
    assert plan.experts_in_memory == plan.expert_memory < plan.experts
    assert plan.peak <= 0.95 * plan.free
    assert 0 < plan.disk_per_token < plan.weights.experts_read
    more = make_plan(FLASH, ONE, 2 * free * GIB)
    assert more.experts_in_memory > plan.experts_in_memory
    assert more.disk_per_token < plan.disk_per_token


@needs_native
def test_tokens_are_looked_up_with_experts_on_disk_only_where_asked() -> None:
    for free, streamed, lookup in ((256, True, 7), (256, False, 7), (24, True, 7), (24, False, 0)):
        request = EngineRequest(sequences=1, lookup=7, lookup_streamed=streamed)
        assert make_plan(FLASH, request, free * GIB).lookup == lookup


def test_logits_of_all_drafts_have_room() -> None:
    """A step checks up to a block of drafts for each sequence."""
    files = ModelFiles.of_config("tiny", tiny_draft_config(vocab_size=4096))
    alone, drafting = (make_plan(files, EngineRequest(speculate=on, context_length=256), GIB) for on in (False, True))
    assert drafting.working - alone.working >= 8 * 5 * 4096 * 8  # sequences, drafts, logits, bytes


@needs_native
def test_weights_of_every_token_that_do_not_fit_are_told() -> None:
    plan = make_plan(FLASH, ONE, 6 * GIB)
    assert not plan.dense_fits
    assert plan.disk_per_token > plan.weights.read
    assert plan.peak <= plan.free
    assert any("short of the weights that every token needs" in line for line in short_lines(plan, RATES))


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_what_cannot_fit_is_refused_with_the_flag_that_helps(mode: Mode) -> None:
    with pytest.raises(ValueError, match=r"flash does not fit: mode \w+ .* needs [\d,.]+ GiB of memory") as caught:
        make_plan(FLASH, replace(ONE, mode=mode), 24 * GIB)
    assert "24.00 GiB are free" in str(caught.value)
    assert "--mode auto needs at least 1." in str(caught.value)
    with pytest.raises(ValueError, match="No flag makes it fit"):
        make_plan(FLASH, ONE, GIB // 4)


def test_a_context_that_does_not_fit_names_one_that_does() -> None:
    config = FLASH.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"a context of {config:,} tokens needs .* --context \d+ needs at least"):
        make_plan(FLASH, EngineRequest(context_length=config, cache_dtype="fp32", sequences=1), 6 * GIB)


@pytest.mark.parametrize("context", [0, -1, 99_999_999])
def test_a_context_that_the_model_does_not_have_is_refused(context: int) -> None:
    with pytest.raises(ValueError, match=r"context_length must be in \[1, 1048576\], got"):
        make_plan(FLASH, replace(ONE, context_length=context), free=400 * GIB)


def test_explicit_limits_are_kept_and_checked() -> None:
    plan = make_plan(FLASH, replace(ONE, expert_memory=4 * GIB, memory=GIB), 24 * GIB)
    assert plan.expert_memory == 4 * GIB
    assert plan.cache.bytes <= GIB
    whole = plan.weights.experts_mapped
    assert make_plan(FLASH, replace(ONE, expert_memory=whole), 400 * GIB).expert_memory is None
    assert make_plan(FLASH, replace(ONE, expert_memory=whole - 1), 400 * GIB).expert_memory == whole - 1
    assert make_plan(FLASH, replace(ONE, expert_memory=whole), 24 * GIB).expert_memory == whole  # it does not fit
    assert make_plan(FLASH, replace(ONE, expert_memory="all"), 24 * GIB).expert_memory is None
    with pytest.raises(ValueError, match=r"expert_memory must be at least 160,432,128 bytes .* got 1,000"):
        make_plan(FLASH, replace(ONE, expert_memory=1000), 24 * GIB)
    bf16 = ModelFiles.of_config("x", FLASH.config.with_changes(quantized=False))
    with pytest.raises(ValueError, match="expert_memory needs mode 'release'"):
        make_plan(bf16, replace(ONE, expert_memory=4 * GIB), 24 * GIB)


def test_the_bound_on_speed_counts_memory_and_disk() -> None:
    resident, streamed = make_plan(FLASH, ONE, 256 * GIB), make_plan(FLASH, ONE, 24 * GIB)
    assert RATES.most_tokens(resident) == pytest.approx(10e9 / resident.read_per_token)
    assert Rates(10e9, None).most_tokens(resident) is not None
    if streamed.streamed:
        seconds = streamed.read_per_token / 10e9 + streamed.disk_per_token / 2e9
        assert RATES.most_tokens(streamed) == pytest.approx(1 / seconds)
        assert Rates(10e9, None).most_tokens(streamed) is None
        assert any("unknown, because the disk" in line for line in long_lines(streamed, Rates(10e9, None)))


def test_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.planning.rates.SECONDS", 0.01)
    file = tmp_path / "file"
    file.write_bytes(b"x" * (65 << 20))
    rates = measure(file, 16 << 20)
    assert rates.memory > 0
    assert rates.disk is None or rates.disk > 0
    file.write_bytes(b"x")
    assert disk_rate(file) is None


def test_files_in_a_containers_memory_count_as_free(tmp_path: Path) -> None:
    for name, text in (("memory.max", "1000"), ("memory.current", "900")):
        (tmp_path / name).write_text(text)
    assert memory._room(tmp_path, "memory.max", "memory.current") == 100
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\ninactive_file 500\nactive_file 150\n")
    assert memory._room(tmp_path, "memory.max", "memory.current") == 750


MEASURED = """
import sys, torch, dsv4
from dsv4.bench.memory import peak_bytes, reset_peak
from dsv4.generation import SamplingParams

def use(folder):
    model = dsv4.load(folder, context_length=512, sequences=1, memory=2**24, threads=1)
    prompt = torch.randint(model.config.vocab_size, (400,)).tolist()
    for _ in model.events(prompt, SamplingParams(max_tokens=4)):
        pass
    return model.plan.peak

use(sys.argv[1])  # so that code is in memory
reset_peak()
before = peak_bytes()
planned = use(sys.argv[2])
print(planned, peak_bytes() - before)
"""


def test_the_planned_peak_is_that_of_a_run(tmp_path: Path) -> None:
    """The memory of a run lies between 0.5 and 1.1 times its plan: buffers are estimated from above, and not all of
    the cache is written."""
    sizes = {"hidden_size": 384, "moe_intermediate_size": 384, "n_routed_experts": 16, "vocab_size": 2048}
    for name, changes in (("small", {}), ("large", sizes)):
        config = tiny_config(**changes)
        save_checkpoint(tmp_path / name, config, tiny_model(config).state_dict(), LAYOUTS["fp32"])
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "small"), str(tmp_path / "large")]
    planned, measured = map(int, subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.split())
    assert planned > 100 << 20
    assert 0.5 * planned < measured < 1.1 * planned
