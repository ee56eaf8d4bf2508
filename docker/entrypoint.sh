#!/bin/sh
# What follows the image's name goes to ./lab, unless it is a shell, a Python or a path:
#   docker run --rm IMAGE                  the board
#   docker run --rm IMAGE check 01         ./lab check 01
#   docker run --rm -it IMAGE bash         a shell
set -eu

# With --user and an id that the image does not know, HOME is a folder that nobody may write to.
if [ ! -w "${HOME:-/}" ]; then
    HOME=$(mktemp -d)
    export HOME
fi

case "${1:-}" in
    sh | bash | python* | /*) exec "$@" ;;
    *) exec /mini-vllm-labs/lab "$@" ;;
esac
