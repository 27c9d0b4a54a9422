#!/usr/bin/env bash
# Builds attune and starts a cluster of controllers on this machine. It returns
# when they serve; ./stop.sh stops them.
#
#   ./startup.sh                        three controllers, linearizable, on ports 8000-8002
#   CONSISTENCY=sequential ./startup.sh another level: linearizable, sequential, causal,
#                                       or eventual
#   NODES=5 ./startup.sh                another number of controllers
#   BACKEND=memcached ./startup.sh      values in memcached, on 127.0.0.1:11201 and up:
#                                       one each, by docker-compose if Docker runs,
#                                       else from local binaries
#   BACKEND=pebble DATA=data ./startup.sh  values, log and state in data/n1, ...
#   DATA=data ./startup.sh              log and state in data/n1, data/n2, ...: the
#                                       cluster comes back with what it had
#   HOST=.. PORT=.. PEER=.. GOSSIP=.. ADMIN=..  where the first controller listens;
#                                       the others count up (127.0.0.1, 8000, 7400,
#                                       7946, 9090)
#
# Everything else is in config.ini, or in ATTUNE_ variables.
set -euo pipefail
cd "$(dirname "$0")"
run=run
mkdir -p $run

say() { echo "startup.sh: $*" >&2; }

# A start that fails leaves nothing running.
fail() {
	say "$*"
	./stop.sh >/dev/null
	exit 1
}

# args PID: its command line. Small images have no ps, macOS has no /proc.
args() {
	if [ -d /proc/self ]; then
		tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
	else
		ps -ww -o args= -p "$1"
	fi
}

# running NAME: the process that start wrote down under this name is alive. A
# process that got its number later has another command line.
running() {
	local pid want
	[ -f "$run/$1.pid" ] || return 1
	{ read -r pid && read -r want; } <"$run/$1.pid"
	[[ "$(args "$pid" 2>/dev/null) " == *"$want "* ]]
}

# start NAME COMMAND...: runs it in the background, its output in run/NAME.log,
# and returns when it has its own command line, by which stop.sh will know it.
start() {
	local name=$1
	shift
	nohup "$@" >"$run/$name.log" 2>&1 &
	printf '%s\n%s\n' $! "$*" >"$run/$name.pid"
	until running "$name" || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
}

# await NAME ADDRESS: returns when the process answers there. Its number tells it
# from another server that has the port already.
await() {
	local pid
	pid=$(head -n 1 "$run/$1.pid")
	for _ in $(seq 100); do
		if bin/attune cli -s "$2" stats 2>/dev/null | grep -E "^pid +$pid\$" >/dev/null; then return; fi
		kill -0 "$pid" 2>/dev/null || fail "$1 did not start: $(cat "$run/$1.log")"
		sleep 0.1
	done
	fail "$1 does not answer on $2 after 10 s; see $run/$1.log"
}

memcached_of_docker() {
	[ "$servers" = 3 ] || return 1 # docker-compose.yml has three
	docker info >/dev/null 2>&1 || return 1
	local compose=docker-compose
	if docker compose version >/dev/null 2>&1; then
		compose="docker compose"
	elif ! command -v docker-compose >/dev/null; then
		return 1
	fi
	local names=(memcached1 memcached2 memcached3)
	export PUBLISH=127.0.0.1 # where the controllers look for them
	# Containers that are there already are not ours to stop.
	[ -n "$($compose ps -q "${names[@]}" 2>/dev/null)" ] || echo "$compose" >$run/compose
	if ! $compose up -d "${names[@]}" >$run/compose.log 2>&1; then
		say "docker-compose could not start memcached, see $run/compose.log; trying local binaries"
		./stop.sh >/dev/null
		return 1
	fi
	echo "memcached: three containers on 127.0.0.1:11201-11203"
}

memcached_of_this_machine() {
	local port server=(memcached -l 127.0.0.1 -U 0 -m 256)
	command -v memcached >/dev/null ||
		fail "BACKEND=memcached needs Docker or a memcached binary (Debian: apt-get install memcached)"
	[ "$(id -u)" != 0 ] || server+=(-u nobody)
	for i in $(seq "$servers"); do
		port=$((11200 + i))
		running memcached-$port || start memcached-$port "${server[@]}" -p $port
	done
	for i in $(seq "$servers"); do await memcached-$((11200 + i)) 127.0.0.1:$((11200 + i)); done
	echo "memcached: $servers processes on 127.0.0.1:11201 and up"
}

# alive: fails unless all controllers run. One that ended is why the others wait.
alive() {
	local i
	for i in $(seq "$NODES"); do
		kill -0 "$(head -n 1 "$run/n$i.pid")" 2>/dev/null || fail "n$i did not start: $(tail -n 5 "$run/n$i.log")"
	done
}

# ready NAME HOST PORT: returns when the controller serves its level.
ready() {
	local answer=""
	for _ in $(seq 300); do
		alive
		answer=$( (exec 3<>"/dev/tcp/$2/$3" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && cat <&3) 2>/dev/null || true)
		if [[ $answer == *" 200 "* ]]; then return; fi
		sleep 0.1
	done
	fail "$1 is not ready after 30 s: ${answer##*$'\n'}; see $run/$1.log"
}

for pidfile in "$run"/n*.pid; do
	name=$(basename "$pidfile" .pid)
	if running "$name"; then
		say "$name runs already as process $(head -n 1 "$pidfile"); ./stop.sh stops it"
		exit 1
	fi
done
CONSISTENCY=${CONSISTENCY:-${ATTUNE_CONSISTENCY:-linearizable}}
NODES=${NODES:-3}
if ! [[ $NODES =~ ^[1-9][0-9]?$ ]]; then
	say "NODES is how many controllers to start, 1 to 99, not $NODES"
	exit 1
fi
# At these levels one controller needs no cluster, but to keep data.
alone=no
case $CONSISTENCY$NODES in causal1 | eventual1) [ -n "${DATA-}" ] || alone=yes ;; esac
HOST=${HOST:-127.0.0.1} PORT=${PORT:-8000} PEER=${PEER:-7400} GOSSIP=${GOSSIP:-7946} ADMIN=${ADMIN:-9090}
servers=$NODES
case ${BACKEND-} in
"" | embedded) ;;
memcached) if [ "$NODES" = 1 ]; then servers=3; fi ;;
pebble)
	if [ -z "${DATA-}" ]; then
		say "BACKEND=pebble keeps values in files: say where, as in DATA=data"
		exit 1
	fi
	mkdir -p "$DATA"
	DATA=$(cd "$DATA" && pwd) # a URL has the whole path
	;;
*)
	say "BACKEND is embedded, memcached or pebble, not $BACKEND"
	exit 1
	;;
esac
if ! command -v go >/dev/null; then
	say "Go is not installed: get 1.26 or newer from https://go.dev/dl"
	exit 1
fi

echo "building bin/attune"
version=$(git describe --tags --always --dirty 2>/dev/null || echo dev)
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o bin/attune ./cmd/attune

if [ "${BACKEND-}" = memcached ]; then
	memcached_of_docker || memcached_of_this_machine
fi
# They share the machine, and with more threads than cores would wake each other up.
if [ -z "${GOMAXPROCS-}" ]; then
	cores=$(getconf _NPROCESSORS_ONLN)
	export GOMAXPROCS=$((cores > NODES ? cores / NODES : 1))
fi
seeds=""
for i in $(seq 0 $((NODES - 1))); do seeds+=${seeds:+,}$HOST:$((GOSSIP + i)); done
for i in $(seq 0 $((NODES - 1))); do
	name=n$((i + 1))
	flags=(--name "$name" --listen "$HOST:$((PORT + i))" --admin "$HOST:$((ADMIN + i))" --consistency "$CONSISTENCY")
	if [ $alone = no ]; then
		flags+=(--peer "$HOST:$((PEER + i))" --gossip "$HOST:$((GOSSIP + i))" --join "$seeds" --expect "$NODES")
		[ -z "${DATA-}" ] || [ "${BACKEND-}" = pebble ] || flags+=(--data-dir "$DATA/$name")
	fi
	case ${BACKEND-} in
	embedded) flags+=(--backend embedded) ;;
	pebble) flags+=(--backend "pebble://$DATA/$name") ;;
	memcached)
		if [ "$NODES" = 1 ]; then
			flags+=(--backend "memcached://127.0.0.1:11201,127.0.0.1:11202,127.0.0.1:11203")
		else
			flags+=(--backend memcached://127.0.0.1:$((11201 + i)))
		fi
		;;
	esac
	start $name bin/attune serve --config config.ini "${flags[@]}"
done
for i in $(seq 0 $((NODES - 1))); do ready n$((i + 1)) "$HOST" $((ADMIN + i)); done

# Each is ready, and the first hears of it a moment later.
for _ in $(seq 50); do
	shown=$(bin/attune show --server "$HOST:$PORT")
	if [ "$NODES" = 1 ] || [ "$(grep -c "   ready   " <<<"$shown")" = "$NODES" ]; then break; fi
	sleep 0.1
done

cli="bin/attune cli -s $HOST:$PORT"
hint() { printf '  %-54s %s\n' "$@"; }
echo "$shown"
echo
echo "Any memcache client may use any of them. Logs are in $run/."
echo
hint "$cli" "a shell"
hint "$cli set greeting hello" "one command"
if [ "$NODES" = 1 ]; then
	hint "$cli get greeting" "and another"
else
	hint "bin/attune cli -s $HOST:$((PORT + NODES - 1)) get greeting" "and another, of another controller"
fi
hint "bin/attune show -s $HOST:$PORT" "the cluster"
hint "http://$HOST:$ADMIN/" "a page of it, for a browser"
hint "curl http://$HOST:$ADMIN/metrics" "figures"
hint "./stop.sh" "stops it"
