#!/usr/bin/env bash
# Compares three attune controllers with etcd and redis, each of three processes on
# loopback: all run at once, and are loaded in turns. It prints a table: CPU is that of all
# processes of a system, and ratios are medians over neighbouring rounds.
#
#   run.sh [etcd] [etcd-disk] [redis]      default: etcd redis
#   CONNS=64 PIPELINES=1 ROUNDS=3 DURATION=1s run.sh redis
#
# etcd keeps its data on /dev/shm, where a sync costs nothing; etcd-disk keeps it
# under DISK. redis is a primary that takes all writes and two replicas, so attune's sets
# are measured twice: with the clients at all controllers, and with all of them at the
# leader. LEVEL is attune's; with SYNC, os or always, its log is under DISK as well. ATTUNE is
# the program to bench, built from this tree unless given.
set -euo pipefail

ROUNDS=${ROUNDS:-5}
DURATION=${DURATION:-1s} # of a round
WARMUP=${WARMUP:-300ms}
CONNS=${CONNS:-64 256}
PIPELINES=${PIPELINES:-1 16}
KEYS=${KEYS:-10000}
VALUE=${VALUE:-100}      # bytes
LEVEL=${LEVEL:-linearizable}
DISK=${DISK:-/var/tmp}
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh" "$@"

systems=("$@")
[ $# -gt 0 ] || systems=(etcd redis)
needed=(python3 curl)
for system in "${systems[@]}"; do
	case $system in
	etcd | etcd-disk) needed+=(etcd) ;;
	redis) needed+=(redis-server redis-cli) ;;
	*) echo "run.sh: no system $system: etcd, etcd-disk, redis" >&2; exit 2 ;;
	esac
done
needs "${needed[@]}"

declare -A addresses pids

etcd() { # name, data under $2
	local i cluster=() addrs=() peers=() of=()
	directory "$2"
	for i in 0 1 2; do
		freeport; addrs+=("127.0.0.1:$free")
		freeport; peers+=("http://127.0.0.1:$free")
		cluster+=("n$i=${peers[i]}")
	done
	for i in 0 1 2; do
		command etcd --name "n$i" --data-dir "$dir/n$i" \
			--listen-client-urls "http://${addrs[i]}" --advertise-client-urls "http://${addrs[i]}" \
			--listen-peer-urls "${peers[i]}" --initial-advertise-peer-urls "${peers[i]}" \
			--initial-cluster "$(commas "${cluster[@]}")" --initial-cluster-token "$dir" \
			--quota-backend-bytes $((8 << 30)) --logger zap --log-level error >"$dir/n$i.log" 2>&1 &
		servers+=($!) of+=($!)
	done
	addresses[$1]=$(commas "${addrs[@]}") pids[$1]=$(commas "${of[@]}")
}

replicated() { [ "$(redis-cli -p "$1" info replication | grep -c state=online)" = 2 ]; }

redis() {
	local i ports=() primary=() of=()
	directory /dev/shm
	for i in 0 1 2; do
		freeport; ports+=("$free")
		primary=()
		[ "$i" = 0 ] || primary=(--replicaof 127.0.0.1 "${ports[0]}")
		mkdir "$dir/$i"
		redis-server --bind 127.0.0.1 --port "$free" --dir "$dir/$i" --save "" --appendonly no \
			--repl-diskless-sync yes --repl-diskless-sync-delay 0 "${primary[@]}" >"$dir/$i.log" 2>&1 &
		servers+=($!) of+=($!)
	done
	await replicated "${ports[0]}"
	addresses[redis]=127.0.0.1:${ports[0]} pids[redis]=$(commas "${of[@]}")
}

attune() { # sets leader
	local i
	if [ -n "${SYNC:-}" ]; then
		directory "$DISK"
		for i in 0 1 2; do own[i]="--data-dir $dir/n$i --sync $SYNC"; done
	fi
	controllers --consistency "$LEVEL"
	leader=
	for i in 0 1 2; do
		! curl -fs "http://${our_admin[i]}/metrics" | grep '^attune_raft_role{role="leader"} 1' >/dev/null || leader=${ours[i]}
	done
	addresses[attune]=$(commas "${ours[@]}") pids[attune]=$(commas "${our_pids[@]}")
}

# attune_load WHAT ADDRESSES FLAG...: one round, as peers prints it.
attune_load() {
	local what=$1 at=$2
	shift 2
	echo "$what"
	loads "$ATTUNE" bench --server "$at" --pid "${pids[attune]}" --conns "$c" --pipeline "$p" \
		--warmup "$WARMUP" --duration "$DURATION" "$@"
}

# round prints what each system did with $c connections and pipeline $p.
round() {
	local system sized=(--keys "$KEYS" --value-size "$VALUE")
	echo "= attune"
	attune_load "set" "${addresses[attune]}" "${sized[@]}" --ratio 0:1 || return
	[ -z "$leader" ] || attune_load "set, leader" "$leader" "${sized[@]}" --ratio 0:1 || return
	attune_load "get" "${addresses[attune]}" "${sized[@]}" --ratio 1:0 || return
	attune_load "incr" "${addresses[attune]}" --incr --keys 1 || return
	for system in "${systems[@]}"; do
		echo "= $system"
		loads "$bin/peers" --system "${system%-disk}" --servers "${addresses[$system]}" --pids "${pids[$system]}" --conns "$c" \
			--pipeline "$p" --keys "$KEYS" --value "$VALUE" --warmup "$WARMUP" --duration "$DURATION" || return
	done
}

# table reads rounds, and prints their medians, and attune's to the others'.
table() {
	python3 -c '
import re, statistics, sys
median = statistics.median
kinds = ["set", "set, leader", "put", "get", "incr", "serializable-get"]
rounds, found = [], {}
for line in open(sys.argv[1]):
    line = line.strip()
    if m := re.match(r"= (\S+)$", line):
        system = m[1]
        if system == "attune":
            rounds.append({})
    elif (kind := re.split("  ", line)[0]) in kinds and not re.match(r"\S+ +\d+ +[\d.]+ ", line):
        found = rounds[-1][system, kind] = {}
    elif m := re.match(r"(\d+) ops/s", line):
        found["ops"] = float(m[1])
    elif m := re.match(r"server CPU ([\d.]+) us", line):
        found["cpu"] = float(m[1])
    elif m := re.match(r"\S+ +\d+ +[\d.]+ +([\d.]+) +[\d.]+ +([\d.]+) ", line):
        found["p50"], found["p99"] = float(m[1]), float(m[2])
same = {"set": ["put", "set"], "set, leader": ["put", "set"], "get": ["get"]}
others = list(dict.fromkeys(s for s, _ in rounds[0] if s != "attune"))
for system, kind in rounds[0]:
    of = [r[system, kind] for r in rounds]
    row = ["%s, %s" % (sys.argv[2], sys.argv[3]), "%s %s" % (system, kind), "%d" % median(x["ops"] for x in of)]
    row += ["%.1f" % median(x[p] / 1000 for x in of) for p in ("p50", "p99")] + ["%.1f" % median(x["cpu"] for x in of)]
    for other in others:
        theirs = [k for k in same.get(kind, []) if (other, k) in rounds[0]] if system == "attune" else []
        ratios = [r[system, kind]["cpu"] / r[other, theirs[0]]["cpu"] for r in rounds] if theirs else []
        row.append("**%.2f** (%.2f-%.2f)" % (median(ratios), min(ratios), max(ratios)) if ratios else "")
    print("| " + " | ".join(row) + " |")
' "$@"
}

directory "${TMPDIR:-/tmp}"
bin=$dir logs=$dir
(cd "$here" && go build -o "$bin/peers" .)
build "$bin"
attune
for system in "${systems[@]}"; do
	case $system in
	etcd) etcd etcd /dev/shm ;;
	etcd-disk) etcd etcd-disk "$DISK" ;;
	redis) redis ;;
	esac
done
echo "$(nproc) cores, $KEYS keys, $VALUE bytes, $LEVEL${SYNC:+, sync = $SYNC}, $ROUNDS rounds of $DURATION each"
echo
printf '| connections, pipeline | | ops/s | p50 ms | p99 ms | us CPU per op |'
printf ' CPU to %s |' "${systems[@]}"
printf '\n|---|---|---|---|---|---|'
printf -- '---|%.0s' "${systems[@]}"
echo
for c in $CONNS; do
	for p in $PIPELINES; do
		: >"$bin/rounds"
		for _ in $(seq "$ROUNDS"); do
			round >>"$bin/rounds" 2>"$bin/err" || { cat "$bin/err" >&2; exit 1; }
		done
		table "$bin/rounds" "$c" "$p"
	done
done
stop
