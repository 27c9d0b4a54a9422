#!/usr/bin/env bash
# Compares three controllers that replicate with one alone, in turns: sets, gets, and gets
# to sets 9:1. It prints a table: CPU is that of all controllers, and ratios are medians
# over neighbouring rounds.
#
#   alone.sh                            all on the cores of this machine
#   SHARE=35 alone.sh                   each controller has 35 % of a CPU, as if on a
#                                       machine of its own; as root, on Linux
#   LEVEL=causal RATIOS=0:1 PIPELINES=1 ROUNDS=3 alone.sh
#
# ATTUNE is the program to bench, built from this tree unless given.
set -euo pipefail

LEVEL=${LEVEL:-eventual}
RATIOS=${RATIOS:-0:1 1:0 9:1}
PIPELINES=${PIPELINES:-1 16}
ROUNDS=${ROUNDS:-5}
DURATION=${DURATION:-1s} # of a round
CONNS=${CONNS:-64}
KEYS=${KEYS:-10000}
VALUE=${VALUE:-100}      # bytes
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh" "$@"
needs curl python3

# share PID: it has SHARE percent of a CPU from now on, a hundredth of a second at a time.
groups=()
share() {
	local group
	[ -n "${SHARE:-}" ] || return 0
	if [ -d /sys/fs/cgroup/cpu ]; then
		group=/sys/fs/cgroup/cpu/attune-peers.$1
		mkdir "$group" && groups+=("$group")
		echo 10000 >"$group/cpu.cfs_period_us"
		echo $((SHARE * 100)) >"$group/cpu.cfs_quota_us"
	else
		echo +cpu >/sys/fs/cgroup/cgroup.subtree_control
		group=/sys/fs/cgroup/attune-peers.$1
		mkdir "$group" && groups+=("$group")
		echo "$((SHARE * 100)) 10000" >"$group/cpu.max"
	fi
	echo "$1" >"$group/cgroup.procs"
}
undo() {
	sleep 0.1 # a group is busy for a moment after its process
	[ ${#groups[@]} = 0 ] || rmdir "${groups[@]}"
}

directory "${TMPDIR:-/tmp}"
logs=$dir
build "$dir"
controllers --consistency "$LEVEL"
freeport; one=127.0.0.1:$free
freeport; admin=127.0.0.1:$free
"$ATTUNE" serve --name alone --listen "$one" --admin "$admin" --threads 1 --consistency "$LEVEL" >"$logs/alone.log" 2>&1 &
alone=$!
servers+=("$alone")
await curl -fs "http://$admin/readyz"
for i in "${our_pids[@]}" "$alone"; do share "$i"; done

echo "$(nproc) cores, $LEVEL, $CONNS connections, $KEYS keys, $VALUE bytes, $ROUNDS rounds of $DURATION each${SHARE:+, $SHARE % of a CPU for each controller}"
echo
echo "| get:set | pipeline | ops/s, three / alone | us CPU per op | ops per CPU second | throughput |"
echo "|---|---|---|---|---|---|"
for ratio in $RATIOS; do
	for pipeline in $PIPELINES; do
		loads "$ATTUNE" bench --server "$(commas "${ours[@]}")" --pid "$(commas "${our_pids[@]}")" \
			--vs "$one" --vs-pid "$alone" --conns "$CONNS" --pipeline "$pipeline" --keys "$KEYS" \
			--value-size "$VALUE" --rounds "$ROUNDS" --duration "$DURATION" --ratio "$ratio" --output json \
			>"$dir/out.json" 2>"$dir/out.err" || { cat "$dir/out.err" >&2; exit 1; }
		row "$ratio" "$pipeline" <"$dir/out.json"
	done
done
