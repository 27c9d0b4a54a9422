#!/usr/bin/env bash
# Compares three controllers, each over a memcached of its own, with three
# twemproxies (nutcracker) over three memcacheds as large: all on loopback, in turns,
# gets to sets 9:1. It prints a table: CPU is that of proxies and memcacheds together,
# and ratios are medians over neighbouring rounds.
#
#   twemproxy.sh                        all of it, about ten minutes
#   LEVELS=eventual LOADS=zipf PIPELINES=1 ROUNDS=3 DURATION=1s twemproxy.sh
#   KEYS=200000 HOT=8MiB LOADS=zipf twemproxy.sh     a tenth fits in what is kept hot
#
# Loads: zipf and uniform; miss is uniform gets with hot-cache 0, so that every value
# comes from a memcached. ATTUNE is the program to bench, built from this tree unless
# given.
set -euo pipefail

LEVELS=${LEVELS:-sequential eventual}
LOADS=${LOADS:-zipf uniform miss}
PIPELINES=${PIPELINES:-1 16}
ROUNDS=${ROUNDS:-5}
DURATION=${DURATION:-3s} # of a round
CONNS=${CONNS:-64}
KEYS=${KEYS:-20000}
HOT=${HOT:-64MiB}        # hot-cache of each of our controllers
VALUE=${VALUE:-100}      # bytes
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh" "$@"
needs nutcracker memcached curl python3

memcacheds() { # sets stores and pids
	local i
	stores=() pids=()
	for i in 1 2 3; do
		freeport
		memcached -l 127.0.0.1 -p "$free" -U 0 -u nobody -m 1024 -t 1 >/dev/null 2>&1 &
		servers+=($!) pids+=($!) stores+=("127.0.0.1:$free")
	done
}

listens() { (exec 3<>"/dev/tcp/${1%:*}/${1#*:}"); }

twemproxies() { # sets theirs and their_pids
	local i
	memcacheds
	theirs=() their_pids=("${pids[@]}")
	for i in 1 2 3; do
		freeport
		printf 'bench:\n  listen: 127.0.0.1:%s\n  hash: fnv1a_64\n  distribution: ketama\n  servers:\n' "$free" >"$dir/t$i.yml"
		printf '   - %s:1\n' "${stores[@]}" >>"$dir/t$i.yml"
		theirs+=("127.0.0.1:$free")
		freeport
		nutcracker -c "$dir/t$i.yml" -s "$free" -a 127.0.0.1 -o "$dir/t$i.log" >/dev/null 2>&1 &
		servers+=($!) their_pids+=($!)
	done
	for i in "${theirs[@]}"; do await listens "$i"; done
}

attune() { # level hot-cache; sets ours and our_pids
	local i
	memcacheds
	for i in 0 1 2; do own[i]="--backend memcached://${stores[i]}"; done
	controllers --consistency "$1" --hot-cache "$2"
	our_pids+=("${pids[@]}")
}

# fill ADDRESS...: sets every key, not faster than three memcacheds each take all of
# them, and reads for a while, so that what was lost all the same is repaired.
fill() {
	local load
	for load in "--prefill --ops 1 --warmup 0s --ratio 1:0" "--prefill=false --duration 2s --warmup 0s --ratio 1:0"; do
		# shellcheck disable=SC2086 # several words
		loads "$ATTUNE" bench --server "$(commas "$@")" --conns 3 --pipeline 16 --keys "$KEYS" --value-size "$VALUE" $load \
			>"$dir/fill.out" 2>&1 || { cat "$dir/fill.out" >&2; exit 1; }
	done
}

directory "${TMPDIR:-/tmp}"
logs=$dir
build "$dir"
echo "$(nproc) cores, $CONNS connections, $KEYS keys, $VALUE bytes, $ROUNDS rounds of $DURATION each"
echo
echo "| level | load | pipeline | ops/s, attune / twemproxy | us CPU per op | less CPU | throughput |"
echo "|---|---|---|---|---|---|---|"
for level in $LEVELS; do
	for load in $LOADS; do
		hot=$HOT what=(--dist "$load" --ratio 9:1)
		[ "$load" != miss ] || { hot=0; what=(--dist uniform --ratio 1:0); }
		for pipeline in $PIPELINES; do
			attune "$level" "$hot"
			twemproxies
			fill "${ours[@]}"
			fill "${theirs[@]}"
			loads "$ATTUNE" bench --prefill=false --server "$(commas "${ours[@]}")" --pid "$(commas "${our_pids[@]}")" \
				--vs "$(commas "${theirs[@]}")" --vs-pid "$(commas "${their_pids[@]}")" \
				--conns "$CONNS" --pipeline "$pipeline" --keys "$KEYS" --value-size "$VALUE" --rounds "$ROUNDS" \
				--duration "$DURATION" "${what[@]}" --output json >"$dir/out.json" 2>"$dir/out.err" ||
				{ cat "$dir/out.err" >&2; exit 1; }
			row "$level" "$load" "$pipeline" <"$dir/out.json"
			stop
		done
	done
done
