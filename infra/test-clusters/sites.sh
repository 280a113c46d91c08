#!/bin/bash
# sites.sh up|down|cut NAME|mend NAME  (BASE=directory): two clusters "alpha" and "beta" on this machine, for tests.
# Each has its own network namespace, host name, sshd, munge and Slurm; this machine reaches them at 10.77.1.2 and 10.77.2.2
# and they reach nothing. `cut` takes a site's line down, `mend` brings it back. Needs root, iproute2 and what site.sh needs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
base=${BASE:?set BASE to a directory of the test}
sites=(alpha beta)

number() { case $1 in alpha) echo 1 ;; beta) echo 2 ;; esac; }

up() {
  mkdir -p "$base/keys"; chmod 700 "$base/keys"
  [ -f "$base/keys/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -f "$base/keys/id_ed25519"
  local waits=()
  for name in "${sites[@]}"; do
    local n; n=$(number "$name")
    ip netns add "hf$name"
    ip link add "hf$name" type veth peer name eth0 netns "hf$name"
    ip addr add "10.77.$n.1/30" dev "hf$name"; ip link set "hf$name" up
    ip -n "hf$name" addr add "10.77.$n.2/30" dev eth0; ip -n "hf$name" link set eth0 up; ip -n "hf$name" link set lo up
    # nsenter, not `ip netns exec`: the latter remounts /sys and slurmd finds no cgroup file system
    nsenter --net="/run/netns/hf$name" unshare --uts bash -c "hostname $name; exec bash '$here/site.sh' $name '$base' 10.77.$n.2" &
    waits+=($!)
  done
  for pid in "${waits[@]}"; do wait "$pid"; done
}

down() {
  for name in "${sites[@]}"; do
    for file in slurm-$name/slurmd.pid slurm-$name/slurmctld.pid sshd-$name/sshd.pid slurm-$name/munge/munged.pid; do
      [ -f "$base/$file" ] && kill "$(cat "$base/$file")" 2>/dev/null || true
    done
    # job steps and sessions that are still inside
    for pid in $(ip netns pids "hf$name" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip link del "hf$name" 2>/dev/null || true
    ip netns del "hf$name" 2>/dev/null || true
  done
}

case ${1:-} in
  up) up ;;
  down) down ;;
  cut) ip link set "hf$2" down ;;
  mend) ip link set "hf$2" up ;;
  *) sed -n 2,5p "$0"; exit 2 ;;
esac
