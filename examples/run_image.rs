//! Loads an image and runs a command in it: `run_image ARCHIVE COMMAND…`.
fn main() -> coracle::Result<()> {
    let mut args = std::env::args().skip(1);
    let engine = coracle::Engine::open(args.next().unwrap_or("/dev/shm/lead/root".into()))?;
    let t = std::time::Instant::now();
    let image = engine.load(args.next().unwrap_or("/dev/shm/lead/oci".into()))?;
    println!("load {:?} {}", t.elapsed(), image.id());
    let t = std::time::Instant::now();
    let out = image.container().command(args).require(coracle::isolation::Requirement::nothing()).output()?;
    println!("{:?}", t.elapsed());
    println!("{}\n{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr), out.status);
    Ok(())
}
