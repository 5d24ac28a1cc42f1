# `run --rootfs /`: output as asked, nothing left. Sourced by `.ci/run`.

# Names of everything that a write could have made, outside of what changes by itself.
places() {
    find /etc /usr/local /opt /srv /home /var/lib/dpkg /var/spool -xdev -printf '%p %s %T@\n' 2>/dev/null | sort || true
    find /tmp /var/tmp /dev/shm /run -xdev -maxdepth 2 -name '*coracle*' ! -path "$work*" ! -path '/tmp/coracle-ci-*' -printf '%p\n' 2>/dev/null | sort || true
}

sandbox_as() {
    local user=$1 root=$work/sandbox-$1 output binary
    binary=$(coracle_binary)
    rm -rf "$root"
    install -d -m 700 -o "$user" "$root"
    run() { if [[ $user == root ]]; then "$@"; else as "$user" "$@"; fi; }
    coracle() { run timeout 60 "$binary" --root "$root/store" "$@"; }

    say "as $user"
    watch_traces before
    places >"$work/places.before"
    output=$(coracle run --rm --rootfs / -- sh -c 'echo out; echo err >&2; cat /etc/os-release' 2>"$work/said")
    [[ $output == $'out\n'* && $output == *"$(head -1 /etc/os-release)"* ]] || fail "output: $output"
    grep -qx err "$work/said" || fail "standard error: $(cat "$work/said")"
    output=$(coracle run --rm --rootfs / -- sh -c 'ls /proc | grep -c "^[0-9]"; cat /sys/class/net/*/address; id -u')
    say "inside: $(tr '\n' ' ' <<<"$output")"
    coracle run --rm --rootfs / -- sh -c 'echo x > /tmp/coracle-made-inside && cat /tmp/coracle-made-inside' >/dev/null
    if [[ $user == root ]]; then
        coracle run --rm --rootfs / -- sh -c 'echo x > /etc/coracle-made-inside && rm /etc/passwd && test ! -e /etc/passwd'
    else
        # Files of owners that are not mapped stay as they are; that is refused, not thrown away.
        if coracle run --rm --rootfs / -- sh -c 'echo x > /etc/coracle-made-inside' 2>/dev/null; then
            [[ ! -e /etc/coracle-made-inside ]] || fail "a write to /etc came out"
        fi
    fi
    [[ ! -e /etc/coracle-made-inside && ! -e /tmp/coracle-made-inside && -s /etc/passwd ]] || fail "a write came out"
    places >"$work/places.after"
    diff "$work/places.before" "$work/places.after" || [[ -n ${CORACLE_CI_SHARED:-} ]] || fail "files changed"
    output=$(find "$root/store/containers" "$root/store/tmp" "$root/store/names" -mindepth 1 2>/dev/null || true)
    [[ -z $output ]] || fail "in the store is left: $output"
    watch_traces after

    say "killed, $user's program takes its container along"
    # Through a shell of its own, so that the pid is the program's.
    run bash -c 'echo $$ >"$1/pid"; exec "$2" --root "$1/store" run --rm --rootfs / -- sh -c "trap : TERM; while :; do sleep 0.1; done"' \
        _ "$root" "$binary" &
    local shell=$!
    for _ in $(seq 50); do
        [[ -n $(coracle ps -q) ]] && break
        sleep 0.1
    done
    [[ -n $(coracle ps -q) ]] || fail "it does not run"
    kill -KILL "$(cat "$root/pid")"
    { wait "$shell" || true; } 2>/dev/null
    # The guardian ends processes; control groups and files go with the next open.
    sleep 1
    [[ -z $(coracle ps -q -a) ]] || fail "the container is listed still"
    watch_traces after
    output=$(find "$root/store/containers" "$root/store/tmp" "$root/store/names" -mindepth 1 2>/dev/null || true)
    [[ -z $output ]] || fail "in the store is left: $output"
    run rm -rf "$root/store"
    rm -rf "$root"
}

stage_sandbox() {
    build_binary
    sandbox_as root
    install -d -m 700 -o nobody "$(tmp_of nobody)"
    sandbox_as nobody
    sandbox_as "$range_user"

    say "doctor"
    local user
    for user in root nobody "$range_user"; do
        install -d -m 700 -o "$user" "$work/doctor-$user"
        if [[ $user == root ]]; then
            limit 60 "$(coracle_binary)" --root "$work/doctor-$user/store" doctor
        else
            as "$user" timeout 60 "$(coracle_binary)" --root "$work/doctor-$user/store" doctor | tee "$work/said"
            # What one id means over somebody else's files is said, not found out.
            [[ $user != nobody ]] || grep -q 'writes to files of other owners fail' "$work/said" || fail "doctor says too little"
        fi
        rm -rf "$work/doctor-$user"
    done

    say "the README's first command"
    local command
    command=$(grep -m 1 '^cargo run --release --features cli -- run ' README.md)
    limit 600 bash -euc "$command"
}
