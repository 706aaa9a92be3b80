"""Every test sees a CPU machine of eight devices; set before anything imports jax."""

import atexit
import lzma
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs of tests run a few times and are compiled once: LLVM's optimisations would take half of the whole time.
_FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# Two xdist workers share two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers and the commands that tests start compile each program once between them (the first process makes the folder).
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def _unpacked(name: str, folder: Path) -> Path:
    """Copies a tokenizer of tests/data into `folder`, its tokenizer.json unpacked."""
    for file in (Path(__file__).parent / "data" / name).iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def qwen25_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real Qwen2.5-Instruct tokenizer and chat template."""
    return _unpacked("qwen2.5", tmp_path_factory.mktemp("qwen2.5"))


@pytest.fixture(scope="session")
def qwen3_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real Qwen3 tokenizer and chat template."""
    return _unpacked("qwen3", tmp_path_factory.mktemp("qwen3"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names what was skipped for want of torch: a skip must not hide that something is not tested here."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "torch" in str(report.longrepr)]
    if skipped:
        names = sorted(report.nodeid.removeprefix("tests/") for report in skipped)
        terminalreporter.write_line(f"{len(names)} not run, they compare with torch, which is not installed:")
        terminalreporter.write_line("  " + "\n  ".join(names))
