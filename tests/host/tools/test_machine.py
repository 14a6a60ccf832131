"""What doctor says of the machine and of the versions on it."""

import pytest

from mlx_lm_lora_prefplus.host.tools import doctor, machine

REFERENCE = ["/env/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", "/env/mlx_cpu.libs/liblapack-86b2c207.so.3.10.0"]
OF_NUMPY = "/env/numpy.libs/libscipy_openblas64_-56d6093b.so"
OPENBLAS = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblasp-r0.3.21.so"


@pytest.fixture
def installed(monkeypatch):
    """Only these packages, at these versions, on Linux without a GPU."""

    def install(**versions: str):
        versions = {name.replace("_", "-"): value for name, value in versions.items()}
        monkeypatch.setattr(machine, "installed", versions.get)
        monkeypatch.setattr(machine.sys, "platform", "linux")
        monkeypatch.setattr(machine, "loaded_libraries", list)

    return install


@pytest.mark.parametrize(
    ("libraries", "slow"),
    [
        (REFERENCE, True),
        ([*REFERENCE, OF_NUMPY], True),
        ([*REFERENCE, OF_NUMPY, OPENBLAS], False),
        (["/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3"], False),
        ([], False),
    ],
)
def test_the_slow_blas(libraries, slow):
    assert machine.is_slow(libraries) is slow


def test_the_slow_blas_is_told_with_its_remedy(installed, monkeypatch):
    installed()
    monkeypatch.setattr(machine, "loaded_libraries", lambda: REFERENCE)
    ((what, do),) = machine.notes("cpu")
    assert "reference BLAS" in what and "LD_PRELOAD" in do
    assert not list(machine.notes("cuda"))


def test_the_libraries_of_this_process_are_found():
    assert not machine.Path("/proc").is_dir() or any("mlx" in path for path in machine.loaded_libraries())


def test_pairs_known_to_be_bad(installed):
    installed(mlx="0.32.4", mlx_lm_lora="5.10.2")
    told = " | ".join(what for what, _ in machine.notes("cpu"))
    assert "own CPO stops with an IndexError" in told and "max_recommended_working_set_size" in told
    installed(mlx="0.33.0", mlx_lm_lora="5.11.0")
    assert not list(machine.notes("cpu"))


def test_versions_this_release_does_not_work_with(installed, monkeypatch):
    monkeypatch.setattr(
        machine,
        "_requirements",
        lambda: ["mlx>=0.32.3", "mlx-lm>=0.32.0", "pluggy<2,>=1.5", 'mlx[cpu]; extra == "cpu"'],
    )
    installed(mlx="0.30.1", mlx_lm="0.32", pluggy="2.0.1")
    assert list(machine.version_problems()) == [
        ("mlx 0.30.1 is not supported by this release (supported: >=0.32.3)", 'pip install "mlx>=0.32.3"'),
        ("pluggy 2.0.1 is not supported by this release (supported: <2,>=1.5)", 'pip install "pluggy<2,>=1.5"'),
    ]


def test_the_versions_here_are_right():
    assert machine._requirements() and not list(machine.version_problems())


def test_no_backend(installed):
    installed()
    ((what, do),) = machine.backend_problems("none")
    assert "no backend" in what and "mlx[cpu]" in do


def test_two_backends(installed):
    installed(mlx_cpu="0.32.4", mlx_cuda_12="0.32.4")
    ((what, do),) = machine.backend_problems("cpu")
    assert "mlx-cpu, mlx-cuda-12" in what and "pip uninstall mlx-cpu mlx-cuda-12" in do


def test_mlx_that_does_not_start(monkeypatch):
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: 1 / 0)
    assert machine.device() == {"backend": "none", "device": "ZeroDivisionError: division by zero", "memory": None}


@pytest.mark.slow
def test_doctor_tells_memory_notes_and_switches(monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_PATCH", "1")
    monkeypatch.setattr(machine, "notes", lambda backend: [("it is slow", "make it fast")])
    report = doctor.examine()
    said = "\n".join(doctor.report_lines(report))
    assert report["memory"] > 1e9 and " GB" in said
    assert "note: it is slow\n  do: make it fast" in said
    assert "MLX_LM_LORA_PREFPLUS_PATCH=1" in said
