# The place that everything happens in: a copy of what is committed, users, tools. Sourced by `.ci/run`.

# With a subordinate range, and without one.
range_user=coracle-ci
one_uid_user=coracle-ci-one

say() { printf -- '-- %s\n' "$*"; }
fail() { echo "ci: $*" >&2; return 1; }
# Nothing may hang: a stage's work has a limit of its own.
limit() { timeout --kill-after=20 "$@"; }

prepare() {
    [[ $(id -u) -eq 0 ]] || fail "has to be run as root (it then also tests as other users)"
    export HOME="${HOME:-/root}"
    export PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"
    export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
    # Line numbers are enough to find a panic, and link in half the time.
    export CARGO_PROFILE_DEV_DEBUG=line-tables-only
    unset RUST_BACKTRACE RUSTFLAGS TMPDIR
    if [[ -n "${CORACLE_CI_WORK:-}" ]]; then
        work=$CORACLE_CI_WORK
        keep_work=yes
        mkdir -p "$work"
    else
        # Not in /tmp, which may be memory; readable for the other users, wherever the clone itself is.
        work=$(mktemp -d /var/tmp/coracle-ci.XXXXXX)
        keep_work=
    fi
    chmod 755 "$work"
    source_dir=$work/source
    export CARGO_TARGET_DIR=$work/target
    copy_source
    cd "$source_dir"
    say "$(uname -sr), $(nproc) cores, $(rustc --version)"
    say "working in $work"
    make_user "$range_user" with
    make_user "$one_uid_user" without
    # Where the command line and the examples keep what root loads, unless told otherwise.
    default_root=
    [[ -e /var/lib/coracle ]] || default_root=/var/lib/coracle
}

# What git knows, as it is now: files that nobody committed must not make a test pass.
copy_source() {
    rm -rf "$source_dir"
    mkdir -p "$source_dir"
    if git -C "$origin" -c safe.directory='*' rev-parse --git-dir >/dev/null 2>&1; then
        # A file that is deleted and not committed yet is listed too.
        (cd "$origin" && comm -z -23 <(git -c safe.directory='*' ls-files -z --cached | sort -z) \
            <(git -c safe.directory='*' ls-files -z --deleted | sort -z) | tar --null --no-recursion -T - -c) |
            tar -x --no-same-owner -C "$source_dir"
    else
        (cd "$origin" && tar -c --exclude=./target --exclude=./.git .) | tar -x --no-same-owner -C "$source_dir"
    fi
    chmod -R u+w,a+rX "$source_dir"
}

# A user's own place for temporary files. Right below /tmp, which a rootless sandbox over the host can write to; below
# directories of owners that it has no id for, it cannot.
tmp_of() { echo "/tmp/coracle-ci-$1"; }

# make_user NAME with|without: an ordinary user, with a range of subordinate ids or without any.
make_user() {
    local name=$1 range=$2
    if ! id "$name" >/dev/null 2>&1; then
        useradd --create-home --shell /bin/bash "$name"
        made_users+=("$name")
    fi
    touch /etc/subuid /etc/subgid
    sed -i "/^$name:/d" /etc/subuid /etc/subgid
    if [[ $range == with ]]; then
        echo "$name:700000:65536" >>/etc/subuid
        echo "$name:700000:65536" >>/etc/subgid
    fi
    rm -rf "$(tmp_of "$name")"
    install -d -m 700 -o "$name" -g "$(id -g "$name")" "$(tmp_of "$name")"
}
made_users=()

# as USER COMMAND...: with that user's rights, groups and home, and nothing of our environment.
as() {
    local user=$1
    shift
    setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --inh-caps=-all \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$(getent passwd "$user" | cut -d: -f6)" \
        USER="$user" LOGNAME="$user" LC_ALL=C.UTF-8 TMPDIR="$(tmp_of "$user")" CORACLE_NO_SKIP="${CORACLE_NO_SKIP:-}" \
        CARGO_MANIFEST_DIR="$source_dir" "$@"
}

clean_up() {
    cd /
    [[ -n "${keep_work-}" || -z "${work-}" ]] && return
    local user
    for user in "${made_users[@]}"; do
        pkill -KILL -u "$user" || true
        # A user's processes may take a moment to end.
        for _ in 1 2 3 4 5; do userdel --remove "$user" >/dev/null 2>&1 && break || sleep 0.5; done
        sed -i "/^$user:/d" /etc/subuid /etc/subgid
    done
    rm -rf /tmp/coracle-ci-*
    [[ -z "${default_root:-}" ]] || rm -rf "$default_root"
    rm -rf "$work"
}

stage_tools() {
    local wanted=(
        acl attr bsdextrautils btrfs-progs bubblewrap build-essential busybox-static crun curl file git iproute2 jq libcap2-bin
        mmdebstrap procps python3 qemu-system-x86 runc skopeo strace tar uidmap umoci util-linux xfsprogs xz-utils zstd
    )
    local missing=() package
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [[ ${#missing[@]} -gt 0 ]]; then
        say "installing ${missing[*]}"
        limit 300 apt-get update -q
        limit 600 apt-get install -q -y --no-install-recommends "${missing[@]}"
    fi
    local tool
    for tool in cargo rustc mmdebstrap strace umoci skopeo newuidmap newgidmap jq getfattr setcap zstd setpriv python3; do
        command -v "$tool" >/dev/null || fail "there is no $tool"
    done
    cargo fmt --version
    cargo clippy --version
    cargo fetch --locked
}
