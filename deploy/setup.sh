#!/usr/bin/env bash
# Makes .venv hold what pyproject.toml asks for; does nothing when it already does. The project itself is not
# installed: on a cluster Ray ships the working directory, and a second, installed copy would hide it.
#
#   EXTRA=cpu|gpu   which builds of torch and vLLM (default cpu)
#   PYTHON          interpreter that makes .venv (default python3; 3.11 or newer)
#   VENV            folder of the environment (default .venv in the project)
#
# Packages come from where pip is told to look (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT or pip's
# configuration files), and torch for CPU from PyTorch's index, unless a folder of PIP_FIND_LINKS holds it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${EXTRA:-cpu}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
stamp=$venv/.videostr-setup

say() { echo "setup: $*" >&2; }
refuse() { say "$*"; exit 2; }

[[ $extra == cpu || $extra == gpu ]] || refuse "EXTRA=$extra: must be cpu or gpu"
wanted="$extra $(cat pyproject.toml deploy/setup.sh deploy/overrides-cpu.txt deploy/torchvision_ops.py \
  rewards/service/reward.proto | sha256sum | cut -d' ' -f1)"
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

make_venv() {
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    refuse "$python is older than Python 3.11; name a newer one with PYTHON=..."
  "$python" -m venv --clear "$venv"
}

pip_setting() { # NAME as in pip's --NAME: from the environment, else from pip's configuration files
  local variable=PIP_${1//-/_}
  variable=${variable^^}
  echo "${!variable:-$("$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true)}"
}

adopt() { # UV_VARIABLE VALUE: uv does not read pip's settings; its own ones win
  [[ -z $2 || -n ${!1:-} ]] || export "$1=$2"
}

adopt_pip_settings() {
  local extra_index
  extra_index=$(pip_setting extra-index-url)
  adopt UV_DEFAULT_INDEX "$(pip_setting index-url)"
  adopt UV_INDEX "$extra_index"
  [[ -z $extra_index ]] || adopt UV_INDEX_STRATEGY unsafe-best-match # as pip: the best version of all indexes
  adopt UV_FIND_LINKS "${find_links// /,}"
  adopt UV_HTTP_TIMEOUT "$(pip_setting default-timeout)"
  adopt SSL_CERT_FILE "$(pip_setting cert)"
}

local_cpu_torch() {
  local folder
  for folder in $find_links; do
    compgen -G "${folder#file://}/torch-*+cpu-*.whl" >/dev/null && return 0
  done
  return 1
}

install_packages() {
  # Without compiled files every process would compile vLLM and torch anew where PYTHONDONTWRITEBYTECODE is set: 20 s each.
  local options=(--python "$venv/bin/python" --requirements pyproject.toml --extra "$extra" --extra dev --compile-bytecode)
  if [[ $extra == cpu ]]; then
    options+=(--override deploy/overrides-cpu.txt)
    local_cpu_torch || options+=(--torch-backend cpu)
  elif local_cpu_torch; then
    unset UV_FIND_LINKS # pip's rules would prefer 2.13.0+cpu to 2.13.0
  fi
  "$venv/bin/python" -m pip install -qq uv
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

# The messages of the reward service become a package of the environment, not files of the tree: Ray leaves out of its copy of
# the working directory what git ignores.
compile_reward_proto() {
  local package=videostr_reward_api
  rm -rf "${site:?}/$package"
  mkdir "$site/$package"
  touch "$site/$package/__init__.py" "$site/$package/py.typed"
  "$venv/bin/python" -m grpc_tools.protoc -I "$package=rewards/service" --python_out="$site" --pyi_out="$site" \
    "$package/reward.proto"
}

# The two builds of vLLM put the same files in place, so one cannot follow the other.
[[ -f $stamp && $(cut -d' ' -f1 "$stamp") != "$extra" ]] && { say "$venv is for another EXTRA, making it anew"; rm -rf "$venv"; }
[[ -x $venv/bin/python ]] || make_venv
say "installing packages into $venv (EXTRA=$extra)"
find_links=$(pip_setting find-links)
adopt_pip_settings
install_packages
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cure_torchvision
compile_reward_proto
echo "$wanted" >"$stamp"
