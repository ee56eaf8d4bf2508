#!/bin/sh
# What follows the image's name goes to ./lab, unless it is a program of the environment, a shell or a path:
#   docker run --rm IMAGE                  the board
#   docker run --rm IMAGE check 01         ./lab check 01
#   docker run --rm IMAGE tox -e lab01     tox, with what is installed
#   docker run --rm -it IMAGE bash         a shell
set -eu

# With --user and an id that the image does not know, or with --read-only, HOME is a folder that nobody may write to.
if [ ! -w "${HOME:-/}" ]; then
    HOME=$(mktemp -d)
    export HOME
fi

# numba takes compiled loops only from a folder that it may write to.
if [ -d "${NUMBA_CACHE_DIR:-}" ] && [ ! -w "$NUMBA_CACHE_DIR" ]; then
    kernels=$(mktemp -d)
    cp -R "$NUMBA_CACHE_DIR/." "$kernels"
    export NUMBA_CACHE_DIR="$kernels"
fi

case "${1:-}" in
    sh | bash | python* | pytest | tox | /*) exec "$@" ;;
    *) exec /workspace/lab "$@" ;;
esac
