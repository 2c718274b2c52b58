#!/usr/bin/env bash
# Run a command on two hosts with a network between them, as processes 0 and 1 of 2, and end with 0 if both did.
#     unshare --map-root-user --net --mount --pid --mount-proc --kill-child bash tests/two_hosts.sh COMMAND...
# Each host knows its own name as 127.0.1.1, as Debian's installer writes it, and the other one's by its address.
set -eu
unshare --net sleep 1000 &
other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add cable0 type veth peer name cable1 netns $other

# host NUMBER NAMES COMMAND...: the command on this host, with these lines in /etc/hosts
host() {
    ip address add "10.77.0.$(($1 + 1))/24" dev "cable$1"
    ip link set "cable$1" up
    ip link set lo up
    ip route add default via "10.77.0.$((2 - $1))"
    hosts=$(mktemp)
    printf '127.0.0.1 localhost\n127.0.1.1 host%s\n%s\n' "$1" "$2" >"$hosts"
    mount --bind "$hosts" /etc/hosts
    mount --bind /dev/null /etc/resolv.conf
    rm -f "$hosts"
    hostname "host$1"
    export RANK=$1 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 MASTER_ADDR=host0 MASTER_PORT=29500
    shift 2
    exec "$@"
}
export -f host
unshare --mount --uts bash -euc 'host 0 "" "$@"' - "$@" &
first=$!
nsenter --target $other --net unshare --mount --uts bash -euc 'host 1 "10.77.0.1 host0" "$@"' - "$@" &
second=$!
status=0
wait $first || status=1
wait $second || status=1
exit $status
