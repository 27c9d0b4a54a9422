#!/usr/bin/env bash
# Measures etcd and redis, each of three processes on loopback, with the peers
# command of this directory, and a running attune cluster with attune bench.
#
#   run.sh [etcd] [etcd-disk] [redis] [attune]      default: etcd redis
#
# etcd keeps its data on /dev/shm, where a sync costs nothing; etcd-disk keeps it
# under DISK. The attune part takes the cluster from the environment:
#
#   ATTUNE_SERVERS=127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003 ATTUNE_PIDS=71,72,73
#
# and runs by default if ATTUNE_SERVERS is set. ATTUNE is the program to bench
# with, built from this tree unless given.
set -euo pipefail

DURATION=${DURATION:-10s} # of each kind of request
WARMUP=${WARMUP:-1s}
CONNS=${CONNS:-64 256}
PIPELINES=${PIPELINES:-1 16}
KEYS=${KEYS:-10000}
VALUE=${VALUE:-100}       # bytes
DISK=${DISK:-/var/tmp}
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh" "$@"

parts=("$@")
if [ $# = 0 ]; then
	parts=(etcd redis)
	[ -z "${ATTUNE_SERVERS:-}" ] || parts+=(attune)
fi
for part in "${parts[@]}"; do
	case $part in
	etcd | etcd-disk | redis) ;;
	attune) : "${ATTUNE_SERVERS:?is missing: the addresses of the cluster, with commas between}" ;;
	*) echo "run.sh: no part $part: etcd, etcd-disk, redis, attune" >&2; exit 2 ;;
	esac
done

etcd_part() { # data under $1
	local i cluster=() addrs=() peers=()
	directory "$1"
	for i in 0 1 2; do
		freeport; addrs+=("127.0.0.1:$free")
		freeport; peers+=("http://127.0.0.1:$free")
		cluster+=("n$i=${peers[i]}")
	done
	for i in 0 1 2; do
		etcd --name "n$i" --data-dir "$dir/n$i" \
			--listen-client-urls "http://${addrs[i]}" --advertise-client-urls "http://${addrs[i]}" \
			--listen-peer-urls "${peers[i]}" --initial-advertise-peer-urls "${peers[i]}" \
			--initial-cluster "$(commas "${cluster[@]}")" --initial-cluster-token "$dir" \
			--quota-backend-bytes $((8 << 30)) --logger zap --log-level error >"$dir/n$i.log" 2>&1 &
		servers+=($!)
	done
	measure etcd "$(commas "${addrs[@]}")"
	stop
}

replicated() { [ "$(redis-cli -p "$1" info replication | grep -c state=online)" = 2 ]; }

redis_part() {
	local i ports=() of
	directory /dev/shm
	for i in 0 1 2; do
		freeport; ports+=("$free")
		of=()
		[ "$i" = 0 ] || of=(--replicaof 127.0.0.1 "${ports[0]}")
		mkdir "$dir/$i"
		redis-server --bind 127.0.0.1 --port "$free" --dir "$dir/$i" --save "" --appendonly no \
			--repl-diskless-sync yes --repl-diskless-sync-delay 0 "${of[@]}" >"$dir/$i.log" 2>&1 &
		servers+=($!)
	done
	await replicated "${ports[0]}"
	measure redis "127.0.0.1:${ports[0]}"
	stop
}

measure() { # system servers
	local c p
	for c in $CONNS; do
		for p in $PIPELINES; do
			loads "$bin/peers" --system "$1" --servers "$2" --pids "$(commas "${servers[@]}")" --conns "$c" --pipeline "$p" \
				--keys "$KEYS" --value "$VALUE" --warmup "$WARMUP" --duration "$DURATION"
			echo
		done
	done
}

attune_part() {
	local c p what
	for c in $CONNS; do
		for p in $PIPELINES; do
			for what in "--ratio 0:1 --value-size $VALUE --keys $KEYS" "--ratio 1:0 --value-size $VALUE --keys $KEYS" "--incr --keys 1"; do
				# shellcheck disable=SC2086 # several words
				loads "$ATTUNE" bench --server "$ATTUNE_SERVERS" ${ATTUNE_PIDS:+--pid "$ATTUNE_PIDS"} --conns "$c" --pipeline "$p" \
					--warmup "$WARMUP" --duration "$DURATION" $what
				echo
			done
		done
	done
}

directory "${TMPDIR:-/tmp}"
bin=$dir
(cd "$here" && go build -o "$bin/peers" .)
for part in "${parts[@]}"; do
	echo "== $part, $(nproc) cores"
	case $part in
	etcd) etcd_part /dev/shm ;;
	etcd-disk) etcd_part "$DISK" ;;
	redis) redis_part ;;
	attune)
		build "$bin"
		attune_part
		;;
	esac
done
