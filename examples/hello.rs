//! A throwaway sandbox over the host, and what it is isolated from.
fn main() -> coracle::Result<()> {
    let engine = coracle::Engine::open(std::env::args().nth(1).unwrap_or("/tmp/coracle-hello".into()))?;
    let t = std::time::Instant::now();
    let out = engine.sandbox().command(["sh", "-c", "id; ls /proc | head -3; mount | head -40; ls -la /dev /sys | head -40; echo x > /etc/hostfile; hostname; cat /etc/hosts; ip addr 2>&1 | head -5; cat /proc/self/status | grep -i -E 'cap|seccomp|nonewp'; cat /proc/self/cgroup"]).require(coracle::isolation::Requirement::nothing()).output()?;
    println!("{:?}", t.elapsed());
    println!("{}\n{}\n{:?}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr), out.status);
    Ok(())
}
