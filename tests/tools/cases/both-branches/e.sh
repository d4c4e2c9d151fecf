#!/bin/sh
if [ "$A" = 1 ]; then exec "$@"; else exec gosu www "$@"; fi
