"""The ranks of a run, started by one command: on this machine, on several, or by a Ray cluster.

`slurm.sh` and `skypilot.yaml` give that command on every machine that Slurm or SkyPilot has reserved.
"""
