# Snapshot backends on file systems that share blocks, in images on loop devices. Sourced by `.ci/run`.

# on_file_system IMAGE DIR MOUNT_OPTIONS COMMAND...: in a mount namespace of its own, so that whatever happens no mount is
# left, and with it no loop device.
on_file_system() {
    # shellcheck disable=SC2016
    unshare --mount --propagation private bash -euc "$(declare -f as tmp_of tests_on_file_system)"'
        source_dir=$1
        mount -o "$4" "$2" "$3"
        chmod 1777 "$3"
        shift 4
        "$@"
    ' _ "$source_dir" "$@"
}

# tests_on_file_system DIR USER LIBRARY CONTAINERS: the two test programs that have something to say about file systems.
tests_on_file_system() {
    local at=$1 user=$2 library=$3 containers=$4 left
    local run=(env "CORACLE_TEST_FS=$at" "TMPDIR=$at" CORACLE_NO_SKIP=1)
    [[ $user == root ]] || run=(as "$user" "${run[@]}")
    "${run[@]}" timeout --kill-after=20 300 "$library" --quiet snapshot:: layer::copy sys:: contract::
    "${run[@]}" timeout --kill-after=20 300 "$containers" --quiet snapshots::
    left=$(find "$at" -mindepth 1 -maxdepth 1 ! -name lost+found)
    [[ -z $left ]] || { echo "files of $user are left: $left" >&2; return 1; }
}

stage_snapshots() {
    local library containers at=$work/file-system image=$work/image kind options user
    library=$(test_program --lib)
    containers=$(test_program --test container)
    mkdir -p "$at"
    for kind in btrfs xfs; do
        rm -f "$image"
        truncate -s 1G "$image"
        "mkfs.$kind" "$image" >/dev/null 2>&1
        for options in loop loop,user_subvol_rm_allowed; do
            [[ $kind == btrfs || $options == loop ]] || continue
            if ! on_file_system "$image" "$at" "$options" true; then
                # What the machine lacks is no fault of the code; where it is there, everything below has to hold.
                say "this machine mounts no $kind images: not tested"
                continue
            fi
            for user in root "$range_user" "$one_uid_user"; do
                say "$kind ($options) as $user"
                on_file_system "$image" "$at" "$options" tests_on_file_system "$at" "$user" "$library" "$containers"
            done
        done
    done
    rm -f "$image"
}

# test_program --lib|--test NAME: builds it, and says where it is.
test_program() {
    cargo test --locked --features cli "$@" --no-run --message-format=json |
        jq -R -r 'fromjson? | select(.reason == "compiler-artifact" and .profile.test and .executable != null) | .executable' |
        tail -n 1
}
