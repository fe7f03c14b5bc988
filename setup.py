# SPDX-License-Identifier: MIT
"""Builds the extension ``fastloss._C`` by CMake and Ninja. Metadata stand in pyproject.toml.

Environment:
    FASTLOSS_CUDA: ``auto`` (default: where torch and nvcc agree on it), ``0`` or ``1``.
    TORCH_CUDA_ARCH_LIST: as for any torch extension, for example ``"8.0;9.0+PTX"``.
    FASTLOSS_WERROR: ``1`` makes warnings errors.
    CXX, CUDA_HOME, MAX_JOBS: as usual.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OLDEST_TORCH = (2, 10)
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "fastloss compiles against the torch you use, which must be installed first:\n"
            "  pip install torch\n"
            "  pip install --no-build-isolation ."
        ) from error
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SystemExit(f"fastloss needs torch >= {oldest}, found {torch.__version__}")
    return torch


def require(program: str, hint: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"fastloss: {program} was not found; {hint}")
    return path


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.exists()), None)


def why_no_cuda(torch, nvcc: Path | None) -> str | None:
    """The reason for which CUDA kernels cannot be built, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if nvcc is None:
        return "nvcc was not found (on PATH, in CUDA_HOME or in /usr/local/cuda)"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    major = found.group(1) if found else "unknown"
    wanted = torch.version.cuda.partition(".")[0]
    if major != wanted:
        return (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, "
            f"but {nvcc} is CUDA {major}: the major versions must agree"
        )
    return None


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST in CMake's spelling: "8.0;9.0+PTX" becomes "80-real;90"."""
    result = []
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    for entry in re.split(r"[;, ]+", wanted.strip()):
        number = entry.removesuffix("+PTX").replace(".", "")
        result.append(number if entry.endswith("+PTX") else f"{number}-real")
    return ";".join(result)


def cuda_options(torch) -> list[str]:
    mode = os.environ.get("FASTLOSS_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f'FASTLOSS_CUDA must be "auto", "0" or "1", got "{mode}"')
    if mode == "0":
        return []
    nvcc = find_nvcc()
    reason = why_no_cuda(torch, nvcc)
    if reason is not None:
        if mode == "1":
            raise SystemExit(f"FASTLOSS_CUDA=1, but {reason}")
        print(f"fastloss: building without CUDA kernels: {reason}")
        return []
    return [
        f"-DFASTLOSS_CUDA_ARCHITECTURES={cuda_architectures()}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]


def build_with_cmake(torch, build: Path, options: list[str]) -> None:
    """Configures and builds the extension in the folder ``build``; what is up to date stays."""
    from torch.utils.cpp_extension import include_paths

    cmake = require("cmake", "install it with: pip install cmake")
    require("ninja", "install it with: pip install ninja")
    compiler = os.environ.get("CXX", "g++")
    require(compiler.split()[0], "a C++20 compiler is needed: GCC 12 or newer, or set CXX")

    build.mkdir(parents=True, exist_ok=True)
    includes = [*include_paths(), sysconfig.get_path("include")]
    configure = [
        cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DFASTLOSS_TORCH_INCLUDE_DIRS={';'.join(includes)}",
        f"-DFASTLOSS_TORCH_LIBRARY_DIR={Path(torch.__file__).parent / 'lib'}",
        f"-DFASTLOSS_TORCH_VERSION={torch.__version__}",
        f"-DFASTLOSS_EXTENSION_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
        f"-DFASTLOSS_WERROR={os.environ.get('FASTLOSS_WERROR', '0')}",
        *options,
    ]  # fmt: skip
    subprocess.run(configure, check=True)
    jobs = os.environ.get("MAX_JOBS")
    subprocess.run([cmake, "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would run the compiler."""

    def build_extension(self, ext: Extension) -> None:
        torch = import_torch()
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One folder per Python and torch: a cache made for another would be believed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        build_with_cmake(torch, build, cuda_options(torch))
        output.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old one mapped keeps it.
        fresh = output.with_suffix(".new")
        shutil.copy2(build / output.name, fresh)
        fresh.replace(output)


if __name__ == "__main__":  # the tests import this file for build_with_cmake
    setup(
        ext_modules=[Extension("fastloss._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
