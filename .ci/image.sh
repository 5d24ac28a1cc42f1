# The main job on real input: a Debian by mmdebstrap becomes an image by umoci and an archive by skopeo; coracle loads
# and runs it, and what the container sees is compared, file by file, with what umoci unpacks. Sourced by `.ci/run`.

layout() { echo "$work/image/layout"; }
archive() { echo "$work/image/debian.tar"; }

# The program under test, optimised as users have it.
coracle_binary() {
    # shellcheck disable=SC2153
    echo "$CARGO_TARGET_DIR/release/coracle"
}

build_binary() {
    limit 900 cargo build --quiet --locked --release --features cli
}

# debian TARGET OPTION...: a small Debian of this machine's own release, from where this machine has its packages.
debian() {
    local target=$1 suite sources=() file
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    say "mmdebstrap $suite"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [[ ! -s $file ]] || sources+=("$file")
    done
    limit 600 mmdebstrap --quiet --mode=root --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        "${@:2}" "$suite" "$target" "${sources[@]}"
}

stage_image_build() {
    build_binary
    local place=$work/image
    rm -rf "$place"
    mkdir -p "$place"
    chmod 755 "$place"

    debian "$place/debian" --skip=cleanup/tmp
    strange_files "$place/debian"

    say "umoci: two layers"
    umoci init --layout "$(layout)"
    umoci new --image "$(layout):ci"
    umoci unpack --image "$(layout):ci" "$place/bundle"
    tar -C "$place/debian" --xattrs --xattrs-include='*' --numeric-owner -c . | tar -C "$place/bundle/rootfs" \
        --xattrs --xattrs-include='*' --numeric-owner --same-permissions --same-owner -x
    umoci repack --image "$(layout):ci" --refresh-bundle "$place/bundle"
    second_layer "$place/bundle/rootfs"
    umoci repack --image "$(layout):ci" "$place/bundle"
    umoci config --image "$(layout):ci" --config.env FROM_IMAGE=yes --config.workingdir /srv --config.cmd cat --config.cmd /etc/os-release
    umoci gc --layout "$(layout)"
    rm -rf "$place/bundle" "$place/debian"

    say "skopeo: docker-archive; the layout as a tar, and both compressed"
    skopeo --insecure-policy copy --quiet "oci:$(layout):ci" "docker-archive:$(archive):coracle/debian:ci"
    gzip -1 -k "$(archive)"
    tar -C "$(layout)" -c . | zstd -q -1 -o "$place/layout.tar.zst"

    say "umoci unpack: what is right"
    umoci unpack --image "$(layout):ci" "$place/reference"
    list_tree "$place/reference/rootfs" >"$place/reference.tar"
    rm -rf "$place/reference"
    chmod -R a+rX "$place"
    du -sh "$place"/* | sed 's/^/   /'
}

# What a Debian does not have by itself, or not for sure.
strange_files() {
    local root=$1
    mkdir -p "$root/srv/strange/deep/er" "$root/srv/gone" "$root/srv/replaced" "$root/srv/opaque"
    cd "$root/srv/strange"
    echo one >file
    ln file hard1
    ln file deep/hard2
    ln -s ../../../../../../etc/passwd escape
    ln -s /absolute/and/dangling dangling
    mkfifo pipe
    echo cap >capable && chmod 755 capable && setcap cap_net_raw,cap_net_bind_service=ep capable
    echo suid >suid && chown 1000:1000 suid && chmod 6755 suid
    echo attr >attr && setfattr -n user.coracle.test -v "a value" attr
    setfattr -n user.on.directory -v yes deep
    mkdir sticky && chmod 3777 sticky && chown 33:42 sticky
    echo nobody >high && chown 60000:60001 high
    touch -h -d '2001-02-03 04:05:06.789012345 UTC' dangling attr deep/er deep
    touch -d '1970-01-01 00:00:00 UTC' high
    printf 'x' >"$(printf 'name\nwith\tline end')"
    printf 'x' >"$(printf 'name-\303\251-\344\270\255')"
    local long
    long=$(printf 'l%.0s' $(seq 200))
    mkdir -p "$long/$long" && echo deep >"$long/$long/$long"
    truncate -s 5M sparse && printf end >>sparse
    echo x >../gone/a && echo x >../replaced/file && echo x >../opaque/below
    # Where the container has files of its own, so that none has to be made.
    touch "$root/etc/hosts" "$root/etc/hostname" "$root/etc/resolv.conf"
    cd "$source_dir"
}

# Changes as a build makes them: removed, replaced, re-owned, linked to what lies below.
second_layer() {
    local root=$1
    cd "$root/srv"
    rm -r gone
    rm -r replaced && echo now a file >replaced
    rm -r opaque && mkdir opaque && echo fresh >opaque/above
    chmod 700 strange/deep && chown 7:8 strange/deep
    ln strange/high strange/hard-to-below
    echo more >>strange/attr
    rm strange/dangling && mkdir strange/dangling && echo x >strange/dangling/x
    cd "$source_dir"
}

# A tree as a tar with everything a tree has. The same options inside and outside.
tree_tar=(tar --format=posix --numeric-owner --sort=name --xattrs "--xattrs-include=*" --acls
    --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./etc/hosts --exclude=./etc/hostname
    --exclude=./etc/resolv.conf -c -C / .)

list_tree() {
    local command=("${tree_tar[@]}")
    command[${#command[@]} - 2]=$1
    "${command[@]}"
}

# image_as USER RANGE COMPARE-OPTIONS...
image_as() {
    local user=$1
    shift
    local root=$work/root-$user coracle output status
    local binary
    binary=$(coracle_binary)
    [[ -x $binary && -s $work/image/reference.tar ]] || fail "run the stage image_build first"
    rm -rf "$root"
    install -d -m 700 -o "$user" -g "$(id -g "$user")" "$root"
    run() { if [[ $user == root ]]; then "$@"; else as "$user" "$@"; fi; }
    coracle() { run timeout 120 "$binary" --root "$root/store" "$@"; }
    watch_traces before

    say "load: docker-archive, plain and gzip; layout, directory and tar with zstd"
    time coracle load -i "$(archive)"
    coracle load -i "$(archive).gz"
    time coracle load "$(layout)"
    coracle load "$work/image/layout.tar.zst"
    coracle images
    coracle --json images | jq -e 'length >= 1' >/dev/null
    # Three forms of the same bytes are one image; skopeo writes a config of its own for docker.
    local ids
    ids=$(coracle images -q --no-trunc -a | sort -u | wc -l)
    [[ $ids -le 2 ]] || fail "$ids images from four forms of one"

    local image=coracle/debian:ci
    say "dpkg -l, perl, ls -ln, os-release"
    coracle run --rm "$image" dpkg -l | tail -n +6 >"$work/packages"
    [[ $(grep -c '^ii' "$work/packages") -gt 60 ]] || fail "dpkg -l says: $(cat "$work/packages")"
    [[ $(coracle run --rm "$image" perl -e 'print 1') == 1 ]] || fail "perl"
    coracle run --rm "$image" | grep -q '^ID=debian' || fail "the image's own command"
    [[ $(coracle run --rm "$image" sh -c 'echo $FROM_IMAGE; pwd') == $'yes\n/srv' ]] || fail "environment or directory"
    if [[ $user != "$one_uid_user" ]]; then
        output=$(coracle run --rm "$image" ls -ln /etc/shadow /srv/strange/suid | awk '{ print $1, $3, $4, $NF }')
        [[ $output == $'-rw-r----- 0 42 /etc/shadow\n-rwsr-sr-x 1000 1000 /srv/strange/suid' ]] || fail "owners: $output"
        [[ $(coracle run --rm -u www-data "$image" id -u) == 33 ]] || fail "a user by name"
    fi
    [[ $(coracle run --rm -u 1234:5678 "$image" id -u) == 1234 ]] || fail "a user by number"

    say "the example run_image"
    local example=$CARGO_TARGET_DIR/debug/examples/run_image data=$root/data
    [[ -x $example ]] || limit 900 cargo build --locked --example run_image
    run mkdir -p "$data/coracle"
    run_image() {
        if [[ $user == root ]]; then
            # Root's default place is nobody's to clear, so it lies covered meanwhile.
            unshare --mount --propagation private sh -ec 'mkdir -p /var/lib/coracle
                mount --bind "$0" /var/lib/coracle
                exec timeout 120 "$@"' "$data/coracle" "$example" "$(archive)" "$@"
        else
            as "$user" env XDG_DATA_HOME="$data" timeout 120 "$example" "$(archive)" "$@"
        fi
    }
    [[ $(run_image sh -c 'echo $FROM_IMAGE; pwd') == $'yes\n/srv' ]] || fail "run_image: environment or directory"
    run_image </dev/null | grep -q '^ID=debian' || fail "run_image: the image's own command"
    [[ $(run_image cat <<<"through") == through ]] || fail "run_image: standard input"
    status=0 && run_image sh -c 'exit 7' || status=$?
    [[ $status -eq 7 ]] || fail "run_image: exit 7 gave $status"
    run timeout 120 "$binary" --root "$data/coracle" rmi -f "$image" >/dev/null
    run rm -rf "$data"

    say "exit statuses"
    status=0 && coracle run --rm "$image" sh -c 'exit 7' || status=$?
    [[ $status -eq 7 ]] || fail "exit 7 gave $status"
    status=0 && coracle run --rm "$image" no-such-command 2>"$work/said" || status=$?
    [[ $status -eq 127 ]] && grep -q no-such-command "$work/said" || fail "a missing command gave $status: $(cat "$work/said")"
    status=0 && coracle run --rm "$image" /etc/os-release 2>/dev/null || status=$?
    [[ $status -eq 126 ]] || fail "a file that is no program gave $status"
    status=0 && coracle run --rm --init "$image" sh -c 'kill -KILL $$' || status=$?
    [[ $status -eq 137 ]] || fail "a signal gave $status"

    say "stop: TERM, then KILL"
    coracle run --name sleeper "$image" sleep 1000 &
    local sleeper=$! try
    for try in $(seq 100); do
        [[ -z $(coracle ps -q) ]] || break
        sleep 0.1
    done
    coracle stop -t 1 sleeper >/dev/null
    status=0 && wait "$sleeper" || status=$?
    [[ $status -eq 137 ]] || fail "a stopped container gave $status"
    [[ $(coracle --json ps -a) == *sleeper* ]] || fail "a container that was not removed is not listed"
    coracle rm sleeper >/dev/null

    say "100 MB through standard input and output"
    head -c 100000000 /dev/urandom >"$work/stream"
    [[ $(coracle run --rm -i "$image" cat <"$work/stream" | sha256sum) == $(sha256sum <"$work/stream") ]] || fail "the stream"
    rm "$work/stream"

    say "what the container sees, against what umoci unpacks"
    coracle run --rm "$image" "${tree_tar[@]}" >"$work/seen.tar"
    python3 "$here/compare.py" "$work/image/reference.tar" "$work/seen.tar" "$@"
    rm "$work/seen.tar"

    say "the store is an OCI layout"
    if [[ $user == root ]]; then
        skopeo --insecure-policy copy --quiet "oci:$root/store:docker.io/coracle/debian:ci" "oci:$work/image/copied:ci"
        rm -rf "$work/image/copied"
    fi

    say "removal leaves nothing, and the owner can do it"
    coracle images -q -a --no-trunc | sort -u | while read -r id; do coracle rmi -f "$id" >/dev/null; done
    [[ -z $(coracle images -q -a) ]] || fail "images are left"
    output=$(find "$root/store/blobs/sha256" "$root/store/layers" "$root/store/containers" "$root/store/tmp" -mindepth 1 2>/dev/null || true)
    [[ -z $output ]] || fail "in the store is left: $(head -5 <<<"$output")"
    run rm -rf "$root/store"
    watch_traces after
    rm -rf "$root"
}

stage_image_root() { image_as root; }
stage_image_range() { image_as "$range_user"; }
# With one uid, owners are records beside the files, and nobody may set capabilities.
stage_image_one_uid() { image_as "$one_uid_user" --recorded-owners --no-capabilities; }
