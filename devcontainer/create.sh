#!/bin/sh
# Once, when the dev container has been made. Nothing here needs a login: what is gated is fetched by hand (./lab fetch).
set -eu

# The image has the environment of the pins it was built with; where the work tree's are newer, this brings them.
./lab --help > /dev/null
