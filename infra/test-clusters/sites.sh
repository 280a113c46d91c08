#!/bin/bash
# sites.sh up|down|cut NAME|mend NAME  (BASE=directory): two clusters "alpha" and "beta" on this machine, for tests.
# Each has its own network namespace, host name, sshd, munge and Slurm; this machine reaches them at the addresses in
# BASE/addresses and they reach nothing. `cut` takes a site's line down, `mend` brings it back. Every BASE has namespaces and
# addresses of its own, so that neither another run nor what a killed one left is in the way. Needs root, iproute2 and what
# site.sh needs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
base=${BASE:?set BASE to a directory of the test}
sites=(alpha beta)
tag=$(printf %s "$base" | cksum | awk '{printf "%06x", $1 % 16777216}')

space() { echo "hf-$1-$tag"; } # the namespace of a site
line() { echo "hf${1:0:1}-$tag"; } # this machine's end of the line to it; the kernel allows 15 letters

up() {
  mkdir -p "$base/keys"; chmod 700 "$base/keys"
  [ -f "$base/keys/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -f "$base/keys/id_ed25519"
  : > "$base/addresses"
  exec 9> /run/lock/hydroflow-sites.lock
  flock 9 # two runs may not take the same free network
  for name in "${sites[@]}"; do
    local n=1
    while ip -o -4 addr show | grep -q "inet 10\.77\.$n\."; do
      n=$((n + 1))
      [ $n -lt 255 ] || { echo "no free network 10.77.n.0/30: remove what killed runs left (ip netns list)" >&2; exit 1; }
    done
    ip netns add "$(space "$name")"
    ip link add "$(line "$name")" type veth peer name eth0 netns "$(space "$name")"
    ip addr add "10.77.$n.1/30" dev "$(line "$name")"; ip link set "$(line "$name")" up
    ip -n "$(space "$name")" addr add "10.77.$n.2/30" dev eth0
    ip -n "$(space "$name")" link set eth0 up; ip -n "$(space "$name")" link set lo up
    echo "$name 10.77.$n.2 $(space "$name")" >> "$base/addresses"
  done
  exec 9>&-
  local waits=()
  while read -r name address space; do
    # nsenter, not `ip netns exec`: the latter remounts /sys and slurmd finds no cgroup file system
    nsenter --net="/run/netns/$space" unshare --uts bash -c "hostname $name; exec bash '$here/site.sh' $name '$base' $address" &
    waits+=($!)
  done < "$base/addresses"
  for pid in "${waits[@]}"; do wait "$pid"; done
}

down() {
  for name in "${sites[@]}"; do
    for file in slurm-$name/slurmd.pid slurm-$name/slurmctld.pid sshd-$name/sshd.pid slurm-$name/munge/munged.pid; do
      [ -f "$base/$file" ] && kill "$(cat "$base/$file")" 2>/dev/null || true
    done
    # job steps and sessions that are still inside
    for pid in $(ip netns pids "$(space "$name")" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip link del "$(line "$name")" 2>/dev/null || true
    ip netns del "$(space "$name")" 2>/dev/null || true
  done
}

case ${1:-} in
  up) up ;;
  down) down ;;
  cut) ip link set "$(line "$2")" down ;;
  mend) ip link set "$(line "$2")" up ;;
  *) sed -n 2,7p "$0"; exit 2 ;;
esac
