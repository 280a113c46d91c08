#!/bin/bash
# ceph_rgw.sh up DIRECTORY PORT MONITOR_PORT | down DIRECTORY: a one-host Ceph object gateway, S3 on 127.0.0.1:PORT, its
# monitor on 127.0.0.1:MONITOR_PORT (both free ports), access key "hydroflow", secret "hydroflow-secret".
# A real S3 server for tests; ready in about 20 s. Needs root and Debian's radosgw ceph-osd ceph-mon ceph-mgr ceph-common.
set -eu
action=${1:-} dir=${2:-} port=${3:-} monitor=${4:-}
[ -n "$dir" ] && { [ "$action" = down ] || [ -n "$monitor" ]; } || { sed -n 2,4p "$0"; exit 2; }

down() {
  for file in "$dir"/run/*.pid; do [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true; done
  for _ in $(seq 50); do
    alive=0
    for file in "$dir"/run/*.pid; do [ -f "$file" ] && kill -0 "$(cat "$file")" 2>/dev/null && alive=1 || true; done
    [ $alive = 0 ] && break
    sleep 0.2
  done
  for file in "$dir"/run/*.pid; do [ -f "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null || true; done
}

# A monitor of a busy machine refuses whoever asks before it is ready (EPERM); asking twice does no harm.
ask() {
  for _ in $(seq 10); do
    timeout 60 ceph "$@" > /dev/null && return
    sleep 2
  done
  return 1
}

up() {
  mkdir -p "$dir"/{mon,osd,run,log}
  local id; id=$(cat /proc/sys/kernel/random/uuid)
  cat > "$dir/ceph.conf" <<CONF
[global]
fsid=$id
mon_host=[v1:127.0.0.1:$monitor/0]
ms_bind_ipv4=true
public_addr=127.0.0.1
auth_cluster_required=none
auth_service_required=none
auth_client_required=none
osd_pool_default_size=1
osd_pool_default_min_size=1
osd_crush_chooseleaf_type=0
mon_allow_pool_size_one=true
mon_warn_on_pool_no_redundancy=false
osd_pool_default_pg_num=4
osd_pool_default_pg_autoscale_mode=off
osd_objectstore=bluestore
osd_crush_update_on_start=false
osd_class_update_on_start=false
mon_data_avail_warn=1
mon_data_avail_crit=0
bluestore_block_size=4294967296
bluestore_fsck_on_mount=false
osd_memory_target=939524096
osd_max_object_name_len=1024
run_dir=$dir/run
log_file=$dir/log/\$name.log
admin_socket=$dir/run/\$name.asok
pid_file=$dir/run/\$name.pid
mon_data=$dir/mon
osd_data=$dir/osd
rgw_enable_usage_log=false
mon_max_pg_per_osd=1000
CONF
  export CEPH_CONF=$dir/ceph.conf
  monmaptool --create --addv a "[v1:127.0.0.1:$monitor/0]" --fsid "$id" "$dir/monmap" > /dev/null
  ceph-mon --mkfs -i a --monmap "$dir/monmap" --setuser root --setgroup root
  ceph-mon -i a
  local osd; osd=$(cat /proc/sys/kernel/random/uuid)
  touch "$dir/keyring"
  ask osd create "$osd" 0 || return 1
  ceph-osd -i 0 --mkfs --osd-uuid "$osd" --setuser root --setgroup root
  # by hand: an OSD that does it itself on a busy machine may ask before it knows its monitor, and give up
  ask osd crush add osd.0 1.0 root=default host=one || return 1
  ceph-osd -i 0 --setuser root --setgroup root
  radosgw -n client.rgw --rgw_frontends "beast endpoint=127.0.0.1:$port" --rgw_run_sync_thread=false --rgw_dns_name=localhost
  timeout 200 radosgw-admin user create --uid=hydroflow --display-name=hydroflow --access-key=hydroflow \
    --secret=hydroflow-secret > /dev/null
}

case $action in
  up) up > "$dir.log" 2>&1 || { tail -n 20 "$dir.log" >&2; exit 1; } ;;
  down) down ;;
  *) sed -n 2,4p "$0"; exit 2 ;;
esac
