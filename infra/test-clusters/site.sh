#!/bin/bash
# site.sh NAME BASE ADDRESS: munge + a one-node Slurm + sshd of one test site, inside the namespaces it is called in.
# Needs root and slurm-wlm, munge, openssh-server. Called by sites.sh; ssh key in BASE/keys.
set -eu
name=$1 base=$2 address=$3
slurm=$base/slurm-$name ssh=$base/sshd-$name
mkdir -p "$slurm"/{state,spool,log,munge,dev} "$ssh" /run/sshd
chmod 755 "$base" "$slurm" "$slurm/munge"

# ---- munge: --force because a parent such as /tmp is group-writable, --origin because the namespace has no route ----
dd if=/dev/urandom bs=1 count=1024 of="$slurm/munge/munge.key" 2>/dev/null
chmod 400 "$slurm/munge/munge.key"
munged --force --origin="$address" --key-file="$slurm/munge/munge.key" --socket="$slurm/munge/munge.socket" \
  --pid-file="$slurm/munge/munged.pid" --log-file="$slurm/munge/munged.log" --seed-file="$slurm/munge/seed" --num-threads=2

# ---- Slurm without cgroups, systemd and accounting; two fake GPUs (slurmd wants real device files) ----
for i in 0 1; do [ -e "$slurm/dev/nvidia$i" ] || mknod "$slurm/dev/nvidia$i" c 1 3; done
echo "NodeName=n1 Name=gpu File=$slurm/dev/nvidia[0-1]" > "$slurm/gres.conf"
cat > "$slurm/slurm.conf" <<CONF
ClusterName=$name
SlurmctldHost=$(hostname -s)($address)
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
AuthInfo=socket=$slurm/munge/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SlurmctldLogFile=$slurm/log/slurmctld.log
SlurmdLogFile=$slurm/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$slurm/log/jobcomp.txt
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,defer
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MinJobAge=5
KillWait=5
GresTypes=gpu
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=$address Port=6818 CPUs=16 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=n1 Default=YES MaxTime=1-0 State=UP OverSubscribe=NO
CONF
export SLURM_CONF=$slurm/slurm.conf
slurmctld -c -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N n1

# ---- sshd on the site's own address ----
[ -f "$ssh/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$ssh/host_key"
cp "$base/keys/id_ed25519.pub" "$ssh/authorized_keys"
chmod 600 "$ssh/authorized_keys"
cat > "$ssh/sshd_config" <<CONF
Port 22
ListenAddress $address
HostKey $ssh/host_key
PidFile $ssh/sshd.pid
AuthorizedKeysFile $ssh/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
Subsystem sftp internal-sftp
SetEnv SLURM_CONF=$SLURM_CONF
CONF
"$(command -v sshd || echo /usr/sbin/sshd)" -f "$ssh/sshd_config" -E "$ssh/sshd.log"

for _ in $(seq 60); do
  sinfo -h -o '%T' 2>/dev/null | grep -q idle && exit 0
  sleep 0.25
done
echo "Slurm of site $name did not become idle; see $slurm/log" >&2
exit 1
