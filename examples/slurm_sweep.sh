#!/bin/bash
# A sweep on the nodes of a Slurm allocation, which Ray joins for as long as the job lasts:
#
#     sbatch examples/slurm_sweep.sh experiments/*.toml --budget gpu
#
# The arguments are those of floq sweep. Before the job's time is over, or when it is pre-empted with notice, cells write
# checkpoints and the job is queued again; it goes on where it was. What ended without notice goes on from the newest
# checkpoints when the same command is queued again.
#
#SBATCH --job-name=floq-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=2
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

# On storage that all nodes share, like the environment with floq[ray]: source /shared/venv/bin/activate
save_dir=${SAVE_DIR:-/shared/exp}
dataset_dir=${DATASET_DIR:-/shared/ogbench}

export RAY_USAGE_STATS_ENABLED=0
nodes=$SLURM_JOB_NUM_NODES
head=$SLURMD_NODENAME                  # Slurm runs this script on the first node of the allocation
port=$((20000 + SLURM_JOB_ID % 20000)) # others may have a Ray of their own on the same machine
address=$(hostname --ip-address | awk '{print $1}'):$port
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}")
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then resources+=(--num-gpus="$SLURM_GPUS_ON_NODE"); fi

sweep=""
noticed=""
notice() {
    noticed=yes
    echo "notice: cells write checkpoints, then the job is queued again"
    if [[ -n $sweep ]]; then kill -TERM "$sweep"; fi
}
trap notice TERM
trap 'ray stop > /dev/null 2>&1 || true' EXIT

ray start --head --node-ip-address="${address%:*}" --port="$port" --include-dashboard=false "${resources[@]}"
if ((nodes > 1)); then
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" \
        ray start --address="$address" --block "${resources[@]}" &
fi
for _ in $(seq 100); do # until all have joined; who comes later gets cells all the same
    joined=$(python -c "import ray; ray.init('$address', logging_level='ERROR'); print(len(ray.nodes()))" | tail -n 1)
    if ((joined >= nodes)) || [[ -n $noticed ]]; then break; fi
    sleep 3
done

code=143
if [[ -z $noticed ]]; then
    floq sweep "$@" --save_dir="$save_dir" --dataset_dir="$dataset_dir" --address="$address" &
    sweep=$! code=0
    wait "$sweep" || code=$?
    while kill -0 "$sweep" 2> /dev/null; do # a notice ends the wait, not the sweep
        code=0
        wait "$sweep" || code=$?
    done
fi
if [[ -n $noticed ]] && ((code == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
elif ((code == 0)); then
    floq report "$save_dir" --out report.html
fi
exit "$code"
