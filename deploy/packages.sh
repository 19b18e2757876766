# Sourced by setup.sh and lock.sh: where packages come from. uv does not read pip's settings (PIP_INDEX_URL,
# PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, pip's configuration files); what UV_* does not set is taken from them.

say() { echo "$(basename "$0" .sh): $*" >&2; }
refuse() { say "$*"; exit 2; }

pip_setting() { # PYTHON NAME as in pip's --NAME: from the environment, else from pip's configuration files
  local variable=PIP_${2//-/_}
  variable=${variable^^}
  echo "${!variable:-$("$1" -m pip config get "global.$2" 2>/dev/null || true)}"
}

adopt() { # UV_VARIABLE VALUE: UV_* settings win
  [[ -z $2 || -n ${!1:-} ]] || export "$1=$2"
}

adopt_pip_settings() { # PYTHON
  local extra_index find_links
  extra_index=$(pip_setting "$1" extra-index-url)
  find_links=$(pip_setting "$1" find-links)
  adopt UV_DEFAULT_INDEX "$(pip_setting "$1" index-url)"
  adopt UV_INDEX "$extra_index"
  [[ -z $extra_index ]] || adopt UV_INDEX_STRATEGY unsafe-best-match # as pip: the best version of all indexes
  adopt UV_FIND_LINKS "${find_links// /,}"
  adopt UV_HTTP_TIMEOUT "$(pip_setting "$1" default-timeout)"
  adopt SSL_CERT_FILE "$(pip_setting "$1" cert)"
}
