"""What is shipped beside the code: wheels' metadata and tags, the container files, the service."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import dsv4
from deploy import build_wheels
from dsv4.kernels.native.build import ISA
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICE = ROOT / "deploy" / "dsv4.service"


def project(file: Path) -> dict[str, object]:
    return tomllib.loads(file.read_text(encoding="utf-8"))["project"]


def test_both_packages_have_one_version() -> None:
    own = project(ROOT / "pyproject.toml")
    kernels = (build_wheels.PROJECT / build_wheels.PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert own["version"] == dsv4.__version__
    assert f'__version__ = "{dsv4.__version__}"' in kernels
    assert own["optional-dependencies"]["kernels"] == [f"dsv4-kernels=={dsv4.__version__}"]  # type: ignore[index]
    assert own["license"] == project(build_wheels.PROJECT / "pyproject.toml")["license"] == "MIT"


def test_every_machine_has_the_set_that_needs_nothing() -> None:
    for isas in build_wheels.INSTRUCTION_SETS.values():
        assert set(isas) <= set(ISA)
        assert "portable" in isas


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("readelf") is None, reason="no g++ or readelf")
def test_a_platform_tag_is_what_a_library_asks_for(tmp_path: Path) -> None:
    def compiled(text: str, *flags: str) -> Path:
        (tmp_path / "one.cpp").write_text(text)
        made = tmp_path / "one.so"
        command = ["g++", "-fPIC", "-shared", str(tmp_path / "one.cpp"), "-o", str(made), *flags]
        subprocess.run(command, check=True)
        return made

    assert build_wheels.glibc_of(compiled('extern "C" int one() { return 1; }')) == (2, 17)
    old = 'extern "C" int getentropy(void*, unsigned long); extern "C" int one() { return getentropy(0, 0); }'
    assert build_wheels.glibc_of(compiled(old)) == (2, 25)  # glibc has it since 2.25
    parallel = 'int omp_get_max_threads(); extern "C" int one() { return 1; }'
    with pytest.raises(ValueError, match=r"one\.so needs libgomp\.so\.1, which not every system has"):
        build_wheels.glibc_of(compiled(parallel, "-fopenmp", "-Wl,--no-as-needed"))


def test_a_compiler_for_another_system_is_refused(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho riscv64-linux-gnu\n")
    compiler.chmod(0o755)
    with pytest.raises(ValueError, match="--cxx must compile for Linux on one of x86_64, aarch64"):
        build_wheels.machine_of(str(compiler))


def test_the_image_runs_without_root_and_refuses_to_serve_without_keys() -> None:
    *_, last = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)
    assert re.search(r"^USER (?!root|0)\w+", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "/health" in last
    assert "--insecure" not in DOCKERFILE


def test_compose_publishes_to_this_machine_only() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["dsv4"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "--insecure" not in service["command"]
    assert ":?" in service["environment"]["DSV4_API_KEYS"]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    unit = tmp_path / SERVICE.name
    unit.write_text(SERVICE.read_text(encoding="utf-8").replace("/opt/dsv4/bin/dsv4", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr, done.stderr
