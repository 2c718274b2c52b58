# Sourced by the jobs in this folder: run a command, forward signals, and requeue the job until the run is finished.

# until_done FOLDER COMMAND...: COMMAND is a run into FOLDER that resumes by itself. Exit with its status.
until_done() {
    local folder=$1 run status final
    shift
    "$@" &
    run=$!
    trap 'kill -USR1 "$run"' USR1
    trap 'kill -TERM "$run"' TERM

    # A trapped signal ends `wait` early, while the run still writes its checkpoint: wait again until it has exited.
    while :; do
        wait "$run"
        status=$?
        kill -0 "$run" 2>/dev/null || break
    done
    wait "$run" 2>/dev/null # 127 if the last `wait` above returned the run's status
    final=$?
    [ "$final" -eq 127 ] || status=$final

    # Stopped by SIGUSR1 (status 0, or 138 while it was still loading) or SIGTERM (143): run.json tells whether the run
    # is finished. Any other failure would repeat itself: wrong flags, another run's folder, a loss that diverged.
    case "$status" in
    0) [ -f "$folder/run.json" ] && unfinished "$folder" && scontrol requeue "$SLURM_JOB_ID" ;;
    138 | 143) unfinished "$folder" && scontrol requeue "$SLURM_JOB_ID" ;;
    esac
    exit "$status"
}

unfinished() { ! grep -qs '"status": "finished"' "$1/run.json"; }
