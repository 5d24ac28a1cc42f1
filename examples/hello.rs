//! A throwaway sandbox over the host, and the proof of what it is isolated from.

use coracle::isolation::Aspect;

fn main() -> coracle::Result<()> {
    let engine = coracle::Engine::open_default()?;
    println!("this program is {}\n", engine.identity());

    let sandbox = engine.sandbox();
    let script = "echo hello from pid $$ as $(id -un) on $(hostname)
        echo processes it sees: $(ls /proc | grep -c '^[0-9]')
        echo network interfaces: $(ls /sys/class/net | tr '\\n' ' ')
        echo capabilities: $(grep CapEff /proc/self/status | cut -f 2)
        echo a write: $(echo x > /tmp/coracle-hello && echo worked)";
    let out = sandbox.clone().command(["sh", "-c", script]).output()?;
    print!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!(
        "the write outside: {}",
        if std::path::Path::new("/tmp/coracle-hello").exists() { "there!" } else { "gone" }
    );

    let enforcement = sandbox.command(["true"]).enforcement()?;
    println!("\nenforced by {}:", enforcement.backend());
    for aspect in Aspect::ALL {
        println!("  {aspect}: {} {}", enforcement.level(aspect), enforcement.reason(aspect));
    }
    Ok(())
}
