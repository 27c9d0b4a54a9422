#!/usr/bin/env bash
# Stops exactly what startup.sh started, and waits for it.
set -euo pipefail
cd "$(dirname "$0")"
run=run

# stop FILE: ends the process whose pid is in FILE, if it is still the one.
stop() {
	local pid name
	[ -f "$1" ] || return 0
	pid=$(cat "$1")
	name=$(basename "$1" .pid)
	if kill -0 "$pid" 2>/dev/null && ps -o args= -p "$pid" | grep -q "${name%%-*}"; then
		kill "$pid"
		for _ in $(seq 150); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		if kill -0 "$pid" 2>/dev/null; then
			echo "$name (pid $pid) did not end within 15 s; killing it"
			kill -9 "$pid"
		else
			echo "$name stopped"
		fi
	else
		echo "$name was not running"
	fi
	rm -f "$1"
}

stop $run/attune.pid
for f in $run/memcached-*.pid; do stop "$f"; done
if [ -f $run/compose ]; then
	$(cat $run/compose) rm -sf memcached1 memcached2 memcached3 >>$run/compose.log 2>&1 &&
		echo "memcached containers stopped"
	rm -f $run/compose
fi
