//! 64 threads launch at once, from one engine, while each of them allocates as it likes.

use std::time::Instant;

fn main() -> coracle::Result<()> {
    let engine = coracle::Engine::open_default()?;
    let sandbox = engine.sandbox();
    let start = Instant::now();
    let results: Vec<coracle::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64)
            .map(|number| {
                let sandbox = sandbox.clone();
                scope.spawn(move || {
                    for turn in 0..5 {
                        let text = format!("{number}.{turn}");
                        let out = sandbox.clone().command(["echo", &text]).output()?;
                        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), text, "no output is lost");
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| std::process::exit(1))).collect()
    });
    results.into_iter().collect::<coracle::Result<Vec<()>>>()?;
    println!("64 threads x 5 launches: {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
