#!/bin/bash
# {{command}}
#
# sbatch THIS_FILE, from a directory that all nodes see, with the environment active in which it shall run.
#SBATCH --job-name={{name}}
#SBATCH --nodes={{hosts}}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={{chips}}
#SBATCH --exclusive
#SBATCH --time={{time}}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={{name}}-%j.log
# SIGTERM to every process this long before the time is over: longer than two saves.
#SBATCH --signal=TERM@{{grace}}

export {{grace_variable}}={{given}}
trap : TERM  # the processes hear it and save; this shell stays to see how they end
srun --kill-on-bad-exit=0 {{words}}
code=$?
# {{preempted}}: preempted, saved. {{lost}}: another process was lost. {{aborted}}: the runtime aborted. 137: killed.
# They continue from the last checkpoint.
# 1 and 2 are failures, and stay.
case $code in
  {{preempted}}|{{lost}}|{{aborted}}|137) [ "${SLURM_RESTART_COUNT:-0}" -lt {{restarts}} ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
