#!/bin/bash
# {{command}}
#
# Run it from the source tree, with gcloud set up. It asks for the slice, copies the tree there, starts one process on
# each host, and when the slice is preempted does it again; the run continues from the last checkpoint in {{out}}.
set -u
name={{name}}
zone={{zone}}
tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" --worker=all "${@:2}"; }
# UNKNOWN where the question itself failed: a slice that may be at work must not be deleted for that.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>&1); then
    echo "$said"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

for attempt in $(seq {{restarts}}); do
  case "$(state)" in
    ACTIVE|WAITING_FOR_RESOURCES|PROVISIONING|ACCEPTED) ;;
    UNKNOWN) sleep 30; continue ;;
    *)
      gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet 2>/dev/null
      gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
        --accelerator-type={{accelerator}} --runtime-version={{runtime}}{{spot}} || exit 2
      ;;
  esac
  while now=$(state); [ "$now" != ACTIVE ]; do
    case "$now" in
      FAILED) echo "The request for {{accelerator}} failed: see gcloud compute tpus queued-resources describe $name" \
        "--zone=$zone." >&2; exit 1 ;;
      SUSPEND*) continue 2 ;;
    esac
    sleep 30
  done
  tar -cz --exclude=.git --exclude=.venv --exclude=runs . > "/tmp/$name.tar.gz"
  gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:" --zone="$zone" --worker=all || continue
  tpu ssh --command="mkdir -p $name && tar -xzf $name.tar.gz -C $name && python3 -m venv venv && \
    venv/bin/pip install --quiet './$name[tpu,gcs]'" || continue
  # One process per host; its exit code is left beside it, for ssh to many hosts does not hand it on.
  tpu ssh --command="cd $name && PATH=\$HOME/venv/bin:\$PATH {{grace_variable}}={{given}} "{{quoted}}"; echo \$? > \$HOME/$name.code"
  code=$(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 --command="cat $name.code" 2>/dev/null)
  # {{preempted}}: preempted, saved. {{lost}}: another process was lost. Empty: the slice is gone. Again from the last checkpoint.
  case "$code" in
    0|1|2) echo "Ended with code $code. The slice is still there: gcloud compute tpus queued-resources delete $name" \
      "--zone=$zone --force"; exit "$code" ;;
  esac
done
echo "Given up after {{restarts}} starts." >&2
exit 1
