#!/usr/bin/env bash
# Stops exactly what startup.sh started, and waits for it.
set -euo pipefail
cd "$(dirname "$0")"
run=run

# args PID: its command line. Small images have no ps, macOS has no /proc.
args() {
	if [ -d /proc/self ]; then
		tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
	else
		ps -ww -o args= -p "$1"
	fi
}

# stop NAME: ends the process that startup.sh wrote down under this name. One
# that got its number later has another command line, and is left alone.
stop() {
	local pid want file=$run/$1.pid
	[ -f "$file" ] || return 0
	{ read -r pid && read -r want; } <"$file"
	alive() { [[ "$(args "$pid" 2>/dev/null) " == *"$want "* ]]; }
	if ! alive; then
		echo "$1 was not running"
	else
		kill "$pid" 2>/dev/null || true # it may have ended just now
		for _ in $(seq 150); do
			alive || break
			sleep 0.1
		done
		if alive; then
			echo "$1 (process $pid) did not end within 15 s and is killed"
			kill -9 "$pid" 2>/dev/null || true
		else
			echo "$1 stopped"
		fi
	fi
	rm -f "$file"
}

# All controllers at once: the last ones need not wait for each other.
for file in "$run"/n*.pid; do
	[ -f "$file" ] || continue
	stop "$(basename "$file" .pid)" &
done
wait
for file in "$run"/memcached-*.pid; do
	[ -f "$file" ] || continue
	stop "$(basename "$file" .pid)"
done
if [ -f $run/compose ]; then
	compose=$(cat $run/compose)
	network=$(docker inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' "$($compose ps -q memcached1)" 2>/dev/null || true)
	$compose rm -sf memcached1 memcached2 memcached3 >>$run/compose.log 2>&1
	docker network rm "$network" >>$run/compose.log 2>&1 || true # others may use it
	echo "memcached containers stopped"
	rm -f $run/compose
fi
