#!/usr/bin/env bash
# Builds attune and starts a controller, with the settings of config.ini and of
# ATTUNE_ variables. It returns when the controller answers; ./stop.sh stops it.
#
#   ./startup.sh                      values in the controller's own memory
#   BACKEND=memcached ./startup.sh    values in three memcached servers on
#                                     127.0.0.1:11201-11203, from docker-compose
#                                     if Docker runs, else from local binaries
#   LISTEN=host:port ADMIN=host:port  other addresses
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

# config KEY DEFAULT: what config.ini says.
config() {
	local value
	value=$(sed -n "s/[[:space:]]*\$//; s/^ *$1 *= *//p" config.ini)
	echo "${value:-$2}"
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
	docker info >/dev/null 2>&1 || return 1
	local compose=docker-compose
	if docker compose version >/dev/null 2>&1; then
		compose="docker compose"
	elif ! command -v docker-compose >/dev/null; then
		return 1
	fi
	local servers="memcached1 memcached2 memcached3"
	# Containers that are there already are not ours to stop.
	[ -n "$($compose ps -q $servers 2>/dev/null)" ] || echo "$compose" >$run/compose
	if ! $compose up -d $servers >$run/compose.log 2>&1; then
		say "docker-compose could not start memcached, see $run/compose.log; trying local binaries"
		./stop.sh >/dev/null
		return 1
	fi
	echo "memcached: three containers on 127.0.0.1:11201-11203"
}

memcached_of_this_machine() {
	local port user=""
	command -v memcached >/dev/null ||
		fail "BACKEND=memcached needs Docker or a memcached binary (Debian: apt-get install memcached)"
	[ "$(id -u)" != 0 ] || user="-u nobody"
	for port in 11201 11202 11203; do
		running memcached-$port || start memcached-$port memcached -l 127.0.0.1 -p $port -U 0 -m 256 $user
	done
	for port in 11201 11202 11203; do await memcached-$port 127.0.0.1:$port; done
	echo "memcached: three processes on 127.0.0.1:11201-11203"
}

if running attune; then
	say "attune runs already as process $(head -n 1 $run/attune.pid); ./stop.sh stops it"
	exit 1
fi
case ${BACKEND-} in
"") backend=() ;;
embedded) backend=(--backend embedded) ;;
memcached) backend=(--backend memcached://127.0.0.1:11201,127.0.0.1:11202,127.0.0.1:11203) ;;
*)
	say "BACKEND is embedded or memcached, not $BACKEND"
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
LISTEN=${LISTEN:-${ATTUNE_LISTEN:-$(config listen 127.0.0.1:8000)}}
ADMIN=${ADMIN:-${ATTUNE_ADMIN:-$(config admin 127.0.0.1:9090)}}
start attune bin/attune serve --config config.ini --listen "$LISTEN" --admin "$ADMIN" ${backend[@]+"${backend[@]}"}

server=${LISTEN%%,*}
await attune "$server"
cli="bin/attune cli -s $server"
hint() { printf '  %-52s %s\n' "$@"; }
echo "attune serves $LISTEN as process $(head -n 1 $run/attune.pid), log in $run/attune.log"
echo
hint "$cli" "a shell"
hint "$cli set greeting hello" "one command"
hint "$cli get greeting" "and another"
[ "$ADMIN" = off ] || hint "curl http://$ADMIN/metrics" "figures"
hint "./stop.sh" "stops it"
