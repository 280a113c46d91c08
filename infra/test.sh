#!/usr/bin/env bash
# All tests on real engines and real servers, in the same environment as quickstart.sh; arguments go to pytest
# (`bash infra/test.sh -k hull`, `bash infra/test.sh -m slow`). With CI=true a missing engine or server is a failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

# Programs that tests start beside the engines, and the Debian package of each.
wanted=(
  slurmctld:slurm-wlm sbatch:slurm-client munged:munge sshd:openssh-server ssh:openssh-client
  ip:iproute2 radosgw:radosgw ceph-osd:ceph-osd ceph-mon:ceph-mon ceph-mgr:ceph-mgr ceph:ceph-common chromium:chromium
)
PATH=$PATH:/usr/sbin:/sbin
missing=() packages=()
look() {
  missing=() packages=()
  for pair in "${wanted[@]}"; do
    command -v "${pair%%:*}" >/dev/null || { missing+=("${pair%%:*}"); packages+=("${pair#*:}"); }
  done
}

look
# Daemons for test clusters need root anyway; an ordinary user is told what is left out instead.
if ((${#missing[@]})) && [ "$EUID" = 0 ] && command -v apt-get >/dev/null; then
  apt_install "${packages[@]}"
  look
fi
if ((${#missing[@]})); then
  [ "${CI:-}" != true ] || fail "these tests need ${missing[*]} (Debian: apt-get install ${packages[*]}); see $log"
  say "Without ${missing[*]} some tests are skipped (Debian: apt-get install ${packages[*]})"
fi
environment test pseudos

say "Checking style and types"
ruff check .
mypy hydroflow flows
say "Running the tests"
# Tests start services of their own; a user's data are not for them.
unset HYDROFLOW_HOME HYDROFLOW_MONGODB_URI HYDROFLOW_S3_ENDPOINT_URL HYDROFLOW_S3_BUCKET PREFECT_API_URL
# Many tests wait (for Slurm, for a killed process to be missed), so one more worker than cores keeps the cores busy.
exec python -m pytest -m "not slow" -n "$(($(nproc) < 8 ? $(nproc) + 1 : 8))" --dist loadgroup --no-loadscope-reorder "$@"
