# Sourced by the jobs beside it: runs a command, passes signals on, and requeues the job until the run is done.

# until_done FOLDER COMMAND...: COMMAND is a run into FOLDER that resumes by itself. Ends the job with its status.
until_done() {
    local folder=$1 run status final
    shift
    "$@" &
    run=$!
    trap 'kill -USR1 "$run"' USR1
    trap 'kill -TERM "$run"' TERM

    # A trapped signal ends `wait` early while the run still writes its checkpoint: wait again until it is gone.
    while :; do
        wait "$run"
        status=$?
        kill -0 "$run" 2>/dev/null || break
    done
    wait "$run" 2>/dev/null # 127 when the last `wait` above brought the run's own status
    final=$?
    [ "$final" -eq 127 ] || status=$final

    # Stopped by SIGUSR1 (status 0, or 138 while it was still loading) or SIGTERM (143): run.json tells it from a
    # finished run. Any other status would come again: wrong flags, another run's folder, a loss that diverged.
    case "$status" in
    0) [ -f "$folder/run.json" ] && unfinished "$folder" && scontrol requeue "$SLURM_JOB_ID" ;;
    138 | 143) unfinished "$folder" && scontrol requeue "$SLURM_JOB_ID" ;;
    esac
    exit "$status"
}

unfinished() { ! grep -qs '"status": "finished"' "$1/run.json"; }
