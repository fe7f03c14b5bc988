# SPDX-License-Identifier: MIT
"""The command line, what is installed, and the messages where a build or import cannot work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from setup_script import setup_script

import fastloss
from fastloss import functional
from fastloss.__main__ import main

ROOT = Path(__file__).parents[1]


def test_build_info() -> None:
    info = fastloss.build_info()
    assert info["version"] == fastloss.__version__
    assert info["torch_running"] == torch.__version__
    assert re.fullmatch(r"\d+\.\d+.*", str(info["torch"]))
    assert info["instruction_set"] in ("baseline", "avx2", "avx512", "cuda_emulation")
    assert isinstance(info["cuda"], bool)
    assert bool(info["cuda_version"]) == info["cuda"]
    assert bool(info["cuda_architectures"]) == info["cuda"]


def test_info_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for name, value in fastloss.build_info().items():
        (line,) = [line for line in printed.splitlines() if line.split()[0] == name]
        assert line.split(maxsplit=1)[1] == (str(value) if value != "" else "-")


def test_losses_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(functional.__all__)
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


@pytest.mark.parametrize("arguments", [[], ["bogus"]])
def test_wrong_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "losses" in capsys.readouterr().err


def test_running_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fastloss", "info"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0
    assert fastloss.__version__ in run.stdout


def test_a_missing_extension_names_the_command_to_run(tmp_path: Path) -> None:
    package = tmp_path / "fastloss"
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(Path(fastloss.__file__).parent, package, ignore=ignored)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastloss"
    run = subprocess.run(
        [sys.executable, "-S", "-c", _with_site_packages(code)], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "ImportError: fastloss's extension is not built" in run.stderr
    assert "pip install --no-build-isolation ." in run.stderr
    assert torch.__version__ in run.stderr


def _with_site_packages(code: str) -> str:
    """Without ``site`` no editable install is found beside the copy; torch still has to be."""
    paths = [path for path in sys.path if "site-packages" in path]
    return f"import sys; sys.path.extend({paths!r}); {code}"


def test_the_package_is_typed_and_lists_its_parts() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "fastloss").rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == folders
    assert (ROOT / "fastloss/py.typed").exists()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["fastloss"]
    assert project["project"]["version"] == fastloss.__version__


# ----------------------------------------------------------------------------------- setup.py's own


@pytest.fixture
def setup_module() -> ModuleType:
    return setup_script()


def fake_torch(version: str = "2.13.0", cuda: str | None = None) -> Any:
    return SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda))


def fake_nvcc(tmp_path: Path, release: str) -> Path:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.48'\n")
    nvcc.chmod(0o755)
    return nvcc


def test_no_torch(setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="pip install torch"):
        setup_module.import_torch()


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu128", "2.0.0a0"])
def test_torch_too_old(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(version))
    with pytest.raises(
        SystemExit, match=re.escape(f"fastloss needs torch >= 2.10, found {version}")
    ):
        setup_module.import_torch()


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0", "2.14.0.dev20261001+cu130"])
def test_torch_new_enough(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(version))
    assert setup_module.import_torch().__version__ == version


def test_no_compiler(setup_module: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"fastloss: no-such-g\+\+ was not found; install one"):
        setup_module.require("no-such-g++", "install one")


def test_cuda_majors_that_differ(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "12.4").parents[1]))
    monkeypatch.setenv("FASTLOSS_CUDA", "1")
    with pytest.raises(
        SystemExit,
        match=r"FASTLOSS_CUDA=1, but torch .* is built for CUDA 13\.0, but .*nvcc is CUDA 12",
    ):
        setup_module.cuda_options(fake_torch(cuda="13.0"))


def test_cuda_majors_that_agree(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = fake_nvcc(tmp_path, "13.1")
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[1]))
    monkeypatch.setenv("FASTLOSS_CUDA", "auto")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert setup_module.cuda_options(fake_torch(cuda="13.0")) == [
        "-DFASTLOSS_CUDA_ARCHITECTURES=80-real;90",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]


def test_cuda_asked_for_where_torch_has_none(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLOSS_CUDA", "1")
    with pytest.raises(
        SystemExit, match=r"FASTLOSS_CUDA=1, but torch 2\.13\.0 is built without CUDA"
    ):
        setup_module.cuda_options(fake_torch())


def test_cuda_is_left_out_with_a_reason(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTLOSS_CUDA", "auto")
    assert setup_module.cuda_options(fake_torch()) == []
    assert (
        "building without CUDA kernels: torch 2.13.0 is built without CUDA"
        in capsys.readouterr().out
    )
    monkeypatch.setenv("FASTLOSS_CUDA", "0")
    assert setup_module.cuda_options(fake_torch(cuda="13.0")) == []
    assert capsys.readouterr().out == ""


def test_no_nvcc(setup_module: ModuleType) -> None:
    assert "nvcc was not found" in setup_module.why_no_cuda(fake_torch(cuda="13.0"), None)


def test_wrong_fastloss_cuda(setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLOSS_CUDA", "yes")
    with pytest.raises(SystemExit, match='FASTLOSS_CUDA must be "auto", "0" or "1", got "yes"'):
        setup_module.cuda_options(fake_torch())


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("8.0", "80-real"),
        ("8.0 9.0", "80-real;90-real"),
        ("8.6,9.0a", "86-real;90a-real"),
        ("10.0+PTX", "100"),
    ],
)
def test_architectures(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert setup_module.cuda_architectures() == expected
