"""Programs that pretend to be Slurm's, for tests.

sbatch runs the job on this machine if $FAKE_SLURM_RUNS is set. $FAKE_SLURM, a folder,
holds the scripts of all jobs, and the file `state`, the state of all jobs.
"""

PROGRAMS = {
    'sinfo': """
        [ ! -e "$FAKE_SLURM/down" ] || { echo 'cannot contact controller' >&2; exit 1; }
        printf 'gpu|2-00:00:00\\nshort|1:00:00\\nfree|infinite\\n'
    """,
    'sbatch': """
        [ ! -e "$FAKE_SLURM/refuse" ] ||
            { echo 'sbatch: error: Requested node configuration is not available' >&2
              exit 1; }
        id=$((100 + $(ls "$FAKE_SLURM" | grep -c 'sh$')))
        cp "$1" "$FAKE_SLURM/$id.sh"
        echo "Submitted batch job $id"
        [ -z "$FAKE_SLURM_RUNS" ] || start "$id"
    """,
    'scontrol': """
        [ "$1" = requeue ] && echo "$2" >>"$FAKE_SLURM/requeued" && start "$2"
    """,
    'start': """
        SLURM_JOB_ID=$1 setsid bash "$FAKE_SLURM/$1.sh" >"$FAKE_SLURM/$1.log" 2>&1 &
    """,
    'srun': """
        while :; do
            case $1 in
            --output | --error) shift 2 ;;
            --*) shift ;;
            *) exec "$@" ;;
            esac
        done
    """,
    'sacct': """
        echo 'JobID|State|NodeList'
        for word; do
            case $word in
            [0-9]*) echo "$word|$(cat "$FAKE_SLURM/state" || echo RUNNING)|node" ;;
            esac
        done
    """,
}


def write_programs(folder):
    """Write the programs into a folder."""
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f'#!/bin/bash\n{text}')
        (folder / name).chmod(0o755)
