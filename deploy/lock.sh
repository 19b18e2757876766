#!/usr/bin/env bash
# Writes deploy/locks/*.txt: the exact version of every package of an environment, the newest that pyproject.toml allows, for
# the platforms and Pythons that it names under tool.uv. `make lock` runs it; commit the files after `make test` passed.
#
# Only the main index is asked: a second index or a local folder may hold a package for one platform only. The files name no
# index and no build; setup.sh takes torch's CPU build for EXTRA=cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/packages.sh

python=${VENV:-.venv}/bin/python
everywhere=" ; python_full_version < '3.15' and ((platform_machine == 'aarch64' and sys_platform == 'linux') or (platform_machine == 'x86_64' and sys_platform == 'linux'))"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
adopt_pip_settings "$python"
unset UV_INDEX UV_FIND_LINKS

compile() { # NAME OPTION...
  local name=$1
  shift
  "$python" -m uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
    --no-annotate --no-header "$@" >"$scratch/$name"
}

keep() { # NAME PATTERN: without the packages of PATTERN, and without the marker that holds wherever the file is for
  grep -v "$2" "$scratch/$1" | sed "s/$everywhere$//" >"deploy/locks/$1.txt"
  say "deploy/locks/$1.txt: $(wc -l <"deploy/locks/$1.txt") packages"
}

# vLLM's CPU build asks for torch==2.13.0+cpu, which PyPI lacks. intel-openmp, which vLLM pins, asks for intel-cmplr-lib-ur
# in its Linux wheels only, and uv reads the dependencies of one wheel.
grep -o 'torch==[0-9.]*' pyproject.toml | sort -u >"$scratch/torch"
echo "intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'" >"$scratch/intel.in"
cpu=("$scratch/intel.in" --extra cpu --override deploy/overrides-cpu.txt --override "$scratch/torch")

compile cpu "${cpu[@]}" --extra dev
compile gpu --extra gpu --extra dev
compile bench "${cpu[@]}" --extra bench --constraints "$scratch/cpu"
keep cpu '^nvidia-\|^cuda-\|never' # what PyPI's torch asks for, the CPU build does not
keep gpu '^$'
keep bench '^nvidia-\|^cuda-\|never'
