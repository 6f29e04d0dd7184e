#!/usr/bin/env bash
# Fails when a program asks the loader for libibverbs or librdmacm: where they are missing it would not start.
#
#   not_linked.sh PROGRAM
set -euo pipefail
needed=$(readelf -d "$1" | grep NEEDED)
echo "$needed"
if grep -qE 'libibverbs|librdmacm' <<<"$needed"; then
  echo "$1 needs RDMA's libraries to start" >&2
  exit 1
fi
