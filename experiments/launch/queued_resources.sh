#!/usr/bin/env bash
# Trains on slices of Cloud TPU that are requested by queued resources.
#
#     ZONE=us-east5-a BUCKET=my-bucket REPOSITORY=https://... SLICES=2 TYPE=v5p-32 \
#         experiments/launch/queued_resources.sh
#
# The request waits until the slices are there. The training runs on every host in a loop that starts it again after a
# crash, a hang (exit code 75) or a preemption that the host survives; exit code 0 ends it, and so does 2, refused input.
# Slices that are taken away must be requested again: the same command does so, and the run resumes.
set -euo pipefail

: "${ZONE:?the zone of the TPUs}" "${BUCKET:?a bucket that the hosts mount at /mnt/bucket}"
: "${REPOSITORY:?the address of this repository or of a fork, for git clone}"
NAME=${NAME:-starflow}
SLICES=${SLICES:-2}
TYPE=${TYPE:-v5p-32}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
CONFIG=${CONFIG:-experiments/starflow_3b_t2i.py}

nodes=(--node-id="$NAME")
if ((SLICES > 1)); then
  nodes=(--node-count="$SLICES" --node-prefix="$NAME")
fi
if ! gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" >/dev/null 2>&1; then
  gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" "${nodes[@]}"
fi
state() { gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'; }
until [[ $(state) == ACTIVE ]]; do
  case $(state) in
    FAILED | SUSPENDED)
      echo "the request $NAME has failed; delete it and request it again" >&2
      exit 1
      ;;
  esac
  sleep 60
done

read -r -d '' remote <<EOF || true
set -eu
test -d starflow_jax || git clone --depth 1 "$REPOSITORY" starflow_jax
cd starflow_jax
python3 -m venv ~/venv
~/venv/bin/pip install -q -e '.[tpu]'
mkdir -p /mnt/bucket
mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs "$BUCKET" /mnt/bucket
exec ~/venv/bin/starflow train --config "$CONFIG" --workdir "/mnt/bucket/runs/$NAME" --config.mesh.slices=$SLICES \
  --config.mesh.data=1 --config.mesh.fsdp=-1 --distributed --recommended-flags --supervise 20 --metrics-port 9090
EOF

if ((SLICES > 1)); then
  hosts=()
  for ((slice = 0; slice < SLICES; slice++)); do hosts+=("$NAME-$slice"); done
else
  hosts=("$NAME")
fi
# All hosts of all slices begin together; the first that fails ends the command.
pids=()
for host in "${hosts[@]}"; do
  gcloud compute tpus tpu-vm ssh "$host" --zone="$ZONE" --worker=all --command="$remote" &
  pids+=($!)
done
for _ in "${pids[@]}"; do wait -n "${pids[@]}"; done
