#!/bin/bash
# A run on machines of a Slurm cluster, a rank for each of their devices:
#     sbatch --nodes 2 --gpus-per-node 8 slurm.sh recipe.yaml [more options of triptych run]
# It is given in a folder that every machine sees at the same path, where the recipe is and runs/ shall be. Two minutes
# before Slurm ends the job the run is stopped; the same command goes on with it.
#SBATCH --job-name=triptych
#SBATCH --output=triptych-%j.log
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=INT@120
set -euo pipefail

several=()
if [ "$SLURM_NNODES" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    several=(--nodes "$SLURM_NNODES" --rendezvous "$first:$((20000 + SLURM_JOB_ID % 10000))")
fi

# A task on each machine starts that machine's ranks. Where one fails, Slurm ends the others.
exec srun --ntasks-per-node 1 --kill-on-bad-exit=1 \
    triptych run "$@" --ranks "${SLURM_GPUS_ON_NODE:-1}" "${several[@]}"
