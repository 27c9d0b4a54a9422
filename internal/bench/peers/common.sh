# shellcheck shell=bash
# What run.sh, twemproxy.sh and alone.sh have in common. They source it, with their arguments,
# once they have their settings: from then on they take LIMIT seconds at most, and what
# they have started and made is gone when they end.

LIMIT=${LIMIT:-1800} # seconds, for everything
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${PEERS_BOUNDED:-}" ]; then
	PEERS_BOUNDED=1 exec timeout --foreground -k 20 "$LIMIT" bash "$0" "$@"
fi

servers=() # processes of the part that runs
loader=   # the process that loads them
dirs=()    # to remove at the end

# Ends what this script started; what does not end in 5 seconds is killed.
stop() {
	local pid tries
	{
		for pid in $loader "${servers[@]}"; do
			kill "$pid" 2>/dev/null || true
		done
		for pid in $loader "${servers[@]}"; do
			for tries in $(seq 50); do
				kill -0 "$pid" 2>/dev/null || break
				[ "$tries" != 50 ] || kill -9 "$pid" 2>/dev/null || true
				sleep 0.1
			done
			wait "$pid" 2>/dev/null || true
		done
	} 2>/dev/null # the shell would announce who was killed
	servers=() loader=
}
undo() { :; } # what a script does besides at its end
trap 'stop; undo; [ ${#dirs[@]} = 0 ] || rm -rf "${dirs[@]}"' EXIT
trap 'exit 130' INT TERM

# In the background, so that a signal is not kept waiting for the end of it.
loads() {
	local status=0
	"$@" &
	loader=$!
	wait "$loader" || status=$?
	loader=
	return $status
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

# await COMMAND...: until it succeeds, ten seconds at most.
await() {
	local end=$((SECONDS + 10))
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $end ]; then
			echo "$(basename "$0"): gave up waiting for: $*" >&2
			exit 1
		fi
		sleep 0.1
	done
}

needs() { # PROGRAM...
	local program
	for program in "$@"; do
		command -v "$program" >/dev/null || { echo "$(basename "$0"): $program is missing" >&2; exit 1; }
	done
}

# controllers FLAG...: starts three in one cluster, with a thread each, their logs in $logs.
# own[i] is flags of the i-th alone. Sets ours and our_admin, addresses, and our_pids.
own=()
controllers() {
	local i gossip=()
	ours=() our_admin=() our_pids=()
	for i in 0 1 2; do
		freeport; ours+=("127.0.0.1:$free")
		freeport; gossip+=("127.0.0.1:$free")
		freeport; our_admin+=("127.0.0.1:$free")
	done
	for i in 0 1 2; do
		freeport
		# shellcheck disable=SC2086 # several words
		"$ATTUNE" serve --name "n$i" --listen "${ours[i]}" --admin "${our_admin[i]}" --peer "127.0.0.1:$free" \
			--gossip "${gossip[i]}" --join "$(commas "${gossip[@]}")" --expect 3 --threads 1 ${own[i]:-} "$@" >"$logs/n$i.log" 2>&1 &
		servers+=($!) our_pids+=($!)
	done
	for i in "${our_admin[@]}"; do await curl -fs "http://$i/readyz"; done
}

# Sets ATTUNE to the program to bench with, built from this tree unless given.
build() { # into $1
	[ -z "${ATTUNE:-}" ] || return 0
	ATTUNE=$1/attune
	(cd "$here/../../.." && CGO_ENABLED=0 go build -o "$ATTUNE" ./cmd/attune)
}

# row CELL...: a row of a table, which begins with these, of a report of attune bench as
# JSON on standard input: ops/s and CPU per op of both, and the ratios.
row() {
	python3 -c '
import json, sys
report = json.load(sys.stdin)
a, b = (t["total"] for t in report["targets"])
if a["misses"] + b["misses"] > 0.001 * (a["ops"] + b["ops"]):
    print("misses: %d of %d, and %d of %d" % (a["misses"], a["ops"], b["misses"], b["ops"]), file=sys.stderr)
ratio = {r["metric"]: r for r in report["ratios"]}
def median(metric):
    r = ratio[metric]
    return "%.2f (%.2f-%.2f)" % (r["median"], r["min"], r["max"])
print("| " + " | ".join(sys.argv[1:]) + " | %d / %d | %.2f / %.2f | **%s** | %s |" % (
    a["ops_per_second"], b["ops_per_second"], a["server_cpu"]["us_per_op"], b["server_cpu"]["us_per_op"],
    median("ops_per_server_cpu_second"), median("ops_per_second")))
' "$@"
}
