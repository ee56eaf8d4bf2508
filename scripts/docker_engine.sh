#!/bin/sh
# Starts and stops a separate Docker Engine in a folder, for tests on a machine where none is running:
#
#   scripts/docker_engine.sh start DIR     then export DOCKER_HOST=unix://DIR/docker.sock
#   scripts/docker_engine.sh stop DIR
#
# Needs root and dockerd (Debian: docker.io). There is no bridge, so containers need --network host or none.
set -eu

if [ $# -ne 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
directory=$(realpath "$2")

case "$1" in
    start)
        dockerd --iptables=false --bridge=none --data-root "$directory/data" --exec-root "$directory/exec" \
            --host "unix://$directory/docker.sock" --pidfile "$directory/pid" > "$directory/log" 2>&1 &
        for _ in $(seq 60); do
            if DOCKER_HOST="unix://$directory/docker.sock" docker info > /dev/null 2>&1; then
                exit 0
            fi
            sleep 0.5
        done
        echo "dockerd did not start within 30 seconds; the last lines of $directory/log:" >&2
        tail -n 3 "$directory/log" >&2
        exit 1
        ;;
    stop)
        if [ -f "$directory/pid" ]; then
            pid=$(cat "$directory/pid")
            kill "$pid"
            while kill -0 "$pid" 2> /dev/null; do
                sleep 0.2
            done
        fi
        # dockerd leaves its network namespace mounted, and a mounted file can't be removed.
        awk -v below="$directory/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mounted; do
            umount --lazy "$mounted"
        done
        ;;
    *)
        echo "docker_engine.sh: start or stop, not $1" >&2
        exit 2
        ;;
esac
