#!/usr/bin/env bash
# Makes .venv hold exactly the versions of deploy/locks/EXTRA.txt; does nothing when it already does. The project itself
# is not installed: on a cluster Ray ships the working directory, and a second, installed copy would hide it.
#
#   EXTRA=cpu|gpu   which builds of torch and vLLM (default cpu)
#   LATEST=1        the newest versions that pyproject.toml allows, in place of the locked ones
#   PYTHON          interpreter that makes the environment (default python3; 3.11 or newer)
#   VENV            folder of the environment (default .venv in the project)
#
# Packages come from where pip is set to look (deploy/packages.sh), and torch for CPU from PyTorch's index, unless a folder
# of PIP_FIND_LINKS or UV_FIND_LINKS holds it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/packages.sh

extra=${EXTRA:-cpu}
latest=${LATEST:-}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
stamp=$venv/.videostr-setup
lock=deploy/locks/$extra.txt

[[ $extra == cpu || $extra == gpu ]] || refuse "EXTRA=$extra: must be cpu or gpu"
wanted="$extra $(cat "$lock" pyproject.toml setup.py deploy/{setup,packages}.sh deploy/overrides-cpu.txt deploy/torchvision_ops.py \
  rewards/service/reward.proto | sha256sum | cut -d' ' -f1)"
[[ -z $latest && -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

make_venv() {
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    refuse "$python is $("$python" --version); torch and vLLM need Python 3.11 to 3.14: name one with PYTHON=..."
  "$python" -m venv --clear "$venv"
}

local_cpu_torch() {
  local folder
  for folder in ${UV_FIND_LINKS//,/ }; do
    compgen -G "${folder#file://}/torch-*+cpu-*.whl" >/dev/null && return 0
  done
  return 1
}

install_packages() {
  # Without compiled files every process would compile vLLM and torch again where PYTHONDONTWRITEBYTECODE is set: 20 s each.
  local options=(--python "$venv/bin/python" --compile-bytecode)
  if [[ -n $latest ]]; then
    options+=(--requirements pyproject.toml --extra "$extra" --extra dev --upgrade)
    [[ $extra == gpu ]] || options+=(--override deploy/overrides-cpu.txt)
  else # nothing but what the file names, so --no-deps; what builds deepspeed from source is pinned by it as well
    options+=(--requirements "$lock" --no-deps --build-constraints "$lock")
  fi
  if [[ $extra == cpu ]]; then
    local_cpu_torch || options+=(--torch-backend cpu)
  elif local_cpu_torch; then
    unset UV_FIND_LINKS # pip's rules would prefer 2.13.0+cpu to 2.13.0
  fi
  "$venv/bin/python" -m pip install -qq "$(grep '^uv==' "$lock")"
  "$venv/bin/python" -m uv pip install "${options[@]}"
}

# See deploy/torchvision_ops.py. -S leaves .pth files out, so that an earlier cure does not hide the illness.
cure_torchvision() {
  local failure
  if failure=$(PYTHONPATH=$site "$venv/bin/python" -S -c 'import torchvision' 2>&1); then
    rm -f "$site/torchvision_ops.py" "$site/torchvision_ops.pth"
  elif [[ $failure == *"operator torchvision::nms does not exist"* ]]; then
    cp deploy/torchvision_ops.py "$site/torchvision_ops.py"
    echo "import torchvision_ops" >"$site/torchvision_ops.pth"
    "$venv/bin/python" -c 'import torchvision'
  else
    say "torchvision cannot be imported"; echo "$failure" >&2; exit 1
  fi
}

# The two builds of vLLM put the same files in place, so one cannot follow the other.
[[ -f $stamp && $(cut -d' ' -f1 "$stamp") != "$extra" ]] && { say "$venv is for another EXTRA; it is made again"; rm -rf "$venv"; }
[[ -x $venv/bin/python ]] || make_venv
say "installing packages into $venv (EXTRA=$extra${latest:+, newest versions})"
adopt_pip_settings "$venv/bin/python"
install_packages
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cure_torchvision
"$venv/bin/python" setup.py messages "$site"
echo "$wanted" >"$stamp"
