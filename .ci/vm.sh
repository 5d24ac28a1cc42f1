# The test programs once more under a kernel of Debian's own, where there is nothing but version 2 of control groups: in a
# virtual machine, its processor emulated, so that no rights on the machine itself are needed. Sourced by `.ci/run`.

stage_vm() {
    if [[ $(uname -m) != x86_64 ]]; then
        say "for x86_64 only: not tested"
        return
    fi
    local place=$work/vm library containers kernel
    rm -rf "$place"
    mkdir -p "$place/packages"
    library=$(test_program --lib)
    containers=$(test_program --test container)
    vm_kernel "$place"
    kernel=$(basename "$place"/kernel/lib/modules/*)
    say "Linux $kernel"
    vm_tree "$place" "$kernel"
    local name
    for name in library containers; do
        objcopy --strip-debug "${!name}" "$place/tree/tests/$name"
    done
    (cd "$source_dir" && cargo build --locked --features cli --bin coracle)
    objcopy --strip-debug "$CARGO_TARGET_DIR/debug/coracle" "$place/tree/tests/coracle"
    vm_script >"$place/tree/tests/script"
    vm_boot "$place" "$kernel"
}

# Debian's kernel for virtual machines, unpacked and not installed: the machine's own stays what it is.
vm_kernel() {
    local place=$1 package
    # Lists may be older than what the mirror has.
    limit 300 apt-get update -q >/dev/null || say "the lists of packages stay as they are"
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2 }' | tail -n 1) || true
    [[ -n $package ]] || fail "there is no linux-image-cloud-amd64"
    (cd "$place/packages" && limit 300 apt-get download -q "$package" >/dev/null 2>&1) || fail "$package cannot be downloaded"
    mkdir "$place/kernel"
    dpkg-deb -x "$place"/packages/linux-image-*.deb "$place/kernel"
}

# A small Debian, and what starts the tests in it.
vm_tree() {
    local place=$1 kernel=$2
    debian "$place/tree" --include=busybox-static,kmod,procps,uidmap
    mkdir -p "$place/tree/lib/modules" "$place/tree/tests"
    mv "$place/kernel/lib/modules/$kernel" "$place/tree/lib/modules/"
    chroot "$place/tree" /sbin/depmod "$kernel"
    cat >"$place/tree/first" <<'EOF'
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
busybox hostname machine
busybox ip link set lo up
modprobe -a overlay fuse
bash /tests/script </dev/null && echo "vm: all passed"
echo o >/proc/sysrq-trigger
sleep 60
EOF
    chmod 755 "$place/tree/first"
}

# What is run inside. The long tests try the same as everywhere else, and emulated they take too long.
vm_script() {
    local skips=() name
    for name in "${long_tests[@]}"; do skips+=(--skip "$name"); done
    cat <<EOF
set -euo pipefail
export CORACLE_NO_SKIP=1 CARGO_MANIFEST_DIR=/
[[ \$(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]
/tests/coracle doctor
timeout 300 /tests/library --quiet ${skips[*]} cgroup:: launch:: isolation:: probe container:: snapshot::
# On ext4: this kernel maps no ids of files in memory.
TMPDIR=/tmp timeout 900 /tests/containers --quiet ${skips[*]}
# Nothing is left of any container.
[[ -z \$(find /sys/fs/cgroup -type d -path '*coracle/*') ]]
! ps -eo comm= | grep '^coracle'
EOF
}

# Modules that a disk needs, in their order, and a program that loads them and goes on from there.
vm_boot() {
    local place=$1 kernel=$2 module count=10 disk
    local dependencies=$place/tree/lib/modules/$kernel/modules.dep
    mkdir -p "$place/init"/{bin,dev,new,modules}
    cp "$place/tree/bin/busybox" "$place/init/bin/"
    for module in $(for disk in virtio_pci virtio_blk; do
        sed -n "s|^\(kernel/[^:]*/$disk.ko\(\.xz\)\?\): *\(.*\)|\1 \3|p" "$dependencies" | tr ' ' '\n' | grep . | tac
    done | awk '!seen[$0]++'); do
        cp "$place/tree/lib/modules/$kernel/$module" "$place/init/modules/$count-$(basename "$module")"
        count=$((count + 1))
    done
    cat >"$place/init/init" <<'EOF'
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod "$module"; done
busybox mount -t ext4 /dev/vda /new
busybox umount /dev
exec busybox switch_root /new /first
EOF
    chmod 755 "$place/init/init"
    (cd "$place/init" && find . | "$place/tree/bin/busybox" cpio -o -H newc 2>/dev/null >"$place/initrd")
    mke2fs -q -t ext4 -d "$place/tree" "$place/disk" 2G
    rm -rf "$place/tree" "$place/init"
    # Neither a network nor anything else of this machine.
    limit 3000 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 3G -nographic -no-reboot -nic none \
        -kernel "$place/kernel/boot/vmlinuz-$kernel" -initrd "$place/initrd" \
        -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" \
        -drive "file=$place/disk,format=raw,if=virtio,cache=unsafe" </dev/null 2>&1 | sed -u 's/\r$//' | tee "$place/said"
    grep -q '^vm: all passed$' "$place/said" || fail "the tests in the virtual machine failed"
    rm -rf "$place"
}
