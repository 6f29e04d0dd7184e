#!/usr/bin/env bash
# Compiles what the stories on Kubernetes need: its programs, the worker of the image, and what emulated machines need.
cd "$(dirname "$0")/../.."
tests/rig/kubernetes/kube-rig build
tests/rig/static_worker.sh
tests/rig/kubernetes/kube-rig vm-build
