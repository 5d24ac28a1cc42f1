# The package's own tests, as root and as others. Sourced by `.ci/run`.

# The command that the README tells people to run: in the block after its marker.
readme_test_command() {
    awk '/<!-- test-command -->/ { found = 1; next }
         found && /^```/ { if (inside) exit; inside = 1; next }
         found && inside { print }' README.md
}

# What containers of anybody may leave behind, one a line. Zombies are their parent's to reap.
traces() {
    ps -eo pid=,user=,stat=,comm= | awk '$3 !~ /^Z/ && $4 ~ /^coracle/ { print "process", $1, $2, $4 }'
    awk '$5 ~ /coracle/ { print "mount", $5 }' /proc/self/mountinfo
    find /sys/fs/cgroup -type d -path '*coracle*' -printf 'cgroup %p\n' 2>/dev/null || true
    find /dev/shm /tmp /run -maxdepth 2 -name '*coracle*' ! -path '/tmp/coracle-ci-*' -printf 'file %p\n' 2>/dev/null || true
}

# watch_traces before; ...; watch_traces after
watch_traces() {
    if [[ $1 == before ]]; then
        traces | sort >"$work/traces.before"
        return
    fi
    local try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        traces | sort >"$work/traces.after"
        comm -13 "$work/traces.before" "$work/traces.after" >"$work/traces.new"
        [[ -s $work/traces.new ]] || return 0
        sleep 1
    done
    cat "$work/traces.new" >&2
    if [[ -n ${CORACLE_CI_SHARED:-} ]]; then
        say "these may be somebody else's"
        return 0
    fi
    fail "something was left behind"
}

stage_tests_root() {
    local command
    command=$(readme_test_command)
    [[ $command == cargo\ test* ]] || fail "README.md names no test command after its marker: '$command'"
    say "as the README says: $command"
    watch_traces before
    CORACLE_NO_SKIP=1 limit 1200 bash -euc "$command"
    watch_traces after
}

# What takes long, and tries the same code whatever the features are: run with the README's command, by every user.
long_tests=(
    race_tests:: leaks:: memory_does_not_grow many_long_names memory:: two_hundred_kills host::a_host_that host::many_threads
)

stage_tests_features() {
    local set skips=() name
    for name in "${long_tests[@]}"; do skips+=(--skip "$name"); done
    for set in "${feature_sets[@]}"; do
        say "cargo test ${set:-(default features)}"
        # shellcheck disable=SC2086
        CORACLE_NO_SKIP=1 limit 900 cargo test --quiet --locked $set -- "${skips[@]}"
    done
}

# The README's tests again, as somebody else. Root builds; the user runs what was built.
tests_as() {
    local user=$1 command executables executable count=0
    command=$(readme_test_command)
    # The lines that are JSON; what programs of the build say comes with them.
    executables=$($command --locked --no-run --message-format=json |
        jq -R -r 'fromjson? | select(.reason == "compiler-artifact" and .profile.test and .executable != null) | .executable')
    watch_traces before
    for executable in $executables; do
        # That one reads sources and asks cargo, which is the same for everybody.
        [[ $(basename "$executable") != architecture-* ]] || continue
        say "$(basename "$executable") as $(as "$user" id -un), ids: $(grep -c "^$user:" /etc/subuid || true) range(s)"
        CORACLE_NO_SKIP=1 limit 900 setsid --wait bash -c "$(declare -f as tmp_of); source_dir=$source_dir work=$work; as \"\$@\"" _ "$user" "$executable"
        count=$((count + 1))
    done
    [[ $count -ge 2 ]] || fail "only $count test programs were built by: $command"
    watch_traces after
    nothing_of "$user"
}

# No process of this user, and nothing in its place for temporary files.
nothing_of() {
    local user=$1 left try
    for try in 1 2 3 4 5; do
        left=$(ps -o pid=,stat=,args= -u "$user" | awk '$2 !~ /^Z/' || true)
        [[ -n $left ]] || break
        sleep 1
    done
    [[ -z $left ]] || fail "processes of $user are left: $left"
    left=$(find "$(tmp_of "$user")" -mindepth 1 -maxdepth 1)
    [[ -z $left ]] || fail "files of $user are left: $left"
}

stage_tests_range() { tests_as "$range_user"; }
stage_tests_one_uid() { tests_as "$one_uid_user"; }

stage_examples() {
    limit 900 cargo build --locked --examples
    local example
    for example in hello many_threads untrusted_code custom_isolation; do
        say "$example as root"
        limit 120 "$CARGO_TARGET_DIR/debug/examples/$example"
        say "$example as $range_user"
        as "$range_user" timeout 120 "$CARGO_TARGET_DIR/debug/examples/$example"
        say "$example as $one_uid_user"
        as "$one_uid_user" timeout 120 "$CARGO_TARGET_DIR/debug/examples/$example"
    done
    nothing_of "$range_user"
    nothing_of "$one_uid_user"
}

stage_benches() {
    # That they work and print their ratios; the figures of a busy machine judge nobody.
    limit 900 cargo bench --locked -- --test
}

# Not a search, which takes hours, but the proof that the targets build and hold for a while. Needs no cargo-fuzz.
stage_fuzz() {
    # The same every time: what a search finds by luck is no fault of the change that is checked.
    FUZZ_SEED=1 limit 900 fuzz/run all 5
}
