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
LIMIT=${LIMIT:-1800}      # seconds, for everything

here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${PEERS_BOUNDED:-}" ]; then
	PEERS_BOUNDED=1 exec timeout --foreground -k 20 "$LIMIT" bash "$here/run.sh" "$@"
fi

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

servers=() # processes of the part that runs
load=      # the process that loads them
dirs=()    # to remove at the end

# Ends what this script started; what does not end in 5 seconds is killed.
stop() {
	local pid tries
	{
		for pid in $load "${servers[@]}"; do
			kill "$pid" 2>/dev/null || true
		done
		for pid in $load "${servers[@]}"; do
			for tries in $(seq 50); do
				kill -0 "$pid" 2>/dev/null || break
				[ "$tries" != 50 ] || kill -9 "$pid" 2>/dev/null || true
				sleep 0.1
			done
			wait "$pid" 2>/dev/null || true
		done
	} 2>/dev/null # the shell would announce who was killed
	servers=() load=
}
trap 'stop; [ ${#dirs[@]} = 0 ] || rm -rf "${dirs[@]}"' EXIT
trap 'exit 130' INT TERM

# In the background, so that a signal is not kept waiting for the end of it.
loads() {
	"$@" &
	load=$!
	wait "$load"
	load=
}

# Sets free to a port that nobody listens on, below those the kernel hands out.
used=" "
freeport() {
	while :; do
		free=$((10000 + RANDOM % 20000))
		case $used in *" $free "*) continue ;; esac
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$free") 2>/dev/null; then
			used+="$free "
			return
		fi
	done
}

commas() { local IFS=,; echo "$*"; }

directory() { # under $1; sets dir
	dir=$(mktemp -d "$1/attune-peers.XXXXXX")
	dirs+=("$dir")
}

etcd_part() { # data under $1
	local i urls=() cluster=() addrs=() peers=()
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
	for i in $(seq 100); do
		[ "$(redis-cli -p "${ports[0]}" info replication 2>/dev/null | grep -c state=online)" = 2 ] && break
		[ "$i" != 100 ] || { echo "run.sh: the replicas of redis did not join in 10 seconds" >&2; exit 1; }
		sleep 0.1
	done
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
		if [ -z "${ATTUNE:-}" ]; then
			ATTUNE=$bin/attune
			(cd "$here/../../.." && go build -o "$ATTUNE" ./cmd/attune)
		fi
		attune_part
		;;
	esac
done
