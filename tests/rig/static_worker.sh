#!/usr/bin/env bash
# Builds the worker of the image without a distribution (deploy/images), linked to nothing, and prints its path. In a target
# folder of its own, since other flags would make cargo build everything anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
export RUSTFLAGS='-C target-feature=+crt-static' CARGO_TARGET_DIR=$PWD/tests/.cache/static
cargo build --locked --quiet --release -p worker --bin worker --features s3 --target $target
echo "$CARGO_TARGET_DIR/$target/release/worker"
