#!/usr/bin/env bash
# Builds attune and starts a controller on 127.0.0.1:8000. stop.sh stops it.
#
#   ./startup.sh                      values in the controller's own memory
#   BACKEND=memcached ./startup.sh    values in three memcached servers on
#                                     127.0.0.1:11201-11203, from docker-compose
#                                     if Docker runs, else from local binaries
#   LISTEN=host:port ADMIN=host:port  other addresses
set -euo pipefail
cd "$(dirname "$0")"

BACKEND=${BACKEND:-embedded}
LISTEN=${LISTEN:-127.0.0.1:8000}
ADMIN=${ADMIN:-127.0.0.1:9090}
run=run
mkdir -p "$run"

die() { echo "startup.sh: $*" >&2; exit 1; }

# alive FILE: the process whose pid is in FILE runs what FILE was written for.
alive() {
	[ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null &&
		ps -o args= -p "$(cat "$1")" | grep -q "$(basename "${1%%[-.]*}")"
}

command -v go >/dev/null || die "Go is not installed: get 1.26 or newer from https://go.dev/dl"
if alive "$run/attune.pid"; then
	die "already running as pid $(cat "$run/attune.pid"); ./stop.sh stops it"
fi

echo "building bin/attune"
make -s build

start_memcached() {
	if docker info >/dev/null 2>&1; then
		local compose=""
		if docker compose version >/dev/null 2>&1; then
			compose="docker compose"
		elif command -v docker-compose >/dev/null; then
			compose="docker-compose"
		fi
		if [ -n "$compose" ] && $compose up -d memcached1 memcached2 memcached3 >"$run/compose.log" 2>&1; then
			echo "$compose" >"$run/compose"
			echo "memcached: three containers on 127.0.0.1:11201-11203"
			return
		fi
		echo "docker-compose could not start memcached (see $run/compose.log); trying local binaries"
	fi
	local bin
	bin=$(command -v memcached) ||
		die "BACKEND=memcached needs Docker or a memcached binary (Debian: apt-get install memcached)"
	local user=()
	[ "$(id -u)" = 0 ] && user=(-u nobody)
	for port in 11201 11202 11203; do
		if alive "$run/memcached-$port.pid"; then continue; fi
		"$bin" -l 127.0.0.1 -p $port -U 0 -m 256 "${user[@]}" >"$run/memcached-$port.log" 2>&1 &
		echo $! >"$run/memcached-$port.pid"
		sleep 0.2
		alive "$run/memcached-$port.pid" || die "memcached did not start on port $port: $(cat "$run/memcached-$port.log")"
	done
	echo "memcached: three local processes on 127.0.0.1:11201-11203"
}

case $BACKEND in
embedded) url=embedded ;;
memcached)
	start_memcached
	url=memcached://127.0.0.1:11201,127.0.0.1:11202,127.0.0.1:11203
	;;
*) die "BACKEND is embedded or memcached, not $BACKEND" ;;
esac

nohup bin/attune serve --config config.ini --listen "$LISTEN" --admin "$ADMIN" --backend "$url" \
	>"$run/attune.log" 2>&1 &
echo $! >"$run/attune.pid"

for _ in $(seq 100); do
	if bin/attune cli --server "$LISTEN" version >/dev/null 2>&1; then
		cat <<-TXT

			attune is serving on $LISTEN (backend $BACKEND, log $run/attune.log)

			  bin/attune cli --server $LISTEN                    the shell
			  bin/attune cli --server $LISTEN set greeting hello one command
			  bin/attune cli --server $LISTEN get greeting
			  curl http://$ADMIN/metrics               figures
			  ./stop.sh                                          stop it
		TXT
		exit 0
	fi
	alive "$run/attune.pid" || { cat "$run/attune.log" >&2; die "attune did not start"; }
	sleep 0.1
done
die "attune does not answer on $LISTEN after 10 s; see $run/attune.log"
