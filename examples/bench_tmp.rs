//! tmp
fn main() -> coracle::Result<()> {
    let engine = coracle::Engine::open(std::env::args().nth(1).unwrap_or("/dev/shm/cb".into()))?;
    println!("{:?} {:?}", engine.identity(), engine.snapshotter());
    let b = engine.sandbox_over(std::env::args().nth(2).unwrap_or("/".into())).command(["/bin/true"]);
    println!("{}", b.enforcement()?);
    let mut v = vec![];
    for _ in 0..300 {
        let t = std::time::Instant::now();
        let s = b.output()?;
        assert!(s.status.success());
        v.push(t.elapsed());
    }
    v.sort();
    println!("median {:?} p99 {:?} min {:?}", v[150], v[296], v[0]);
    Ok(())
}
