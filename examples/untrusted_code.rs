//! A sandbox for code that nobody trusts: the strict profile with landlock on top, few files to read, no network, limits on
//! time, memory and output. Works as root and as nobody in particular.

use std::io::Read;
use std::time::Duration;

use coracle::container::Mount;
use coracle::isolation::{Aspect, Level, Requirement};
use coracle::security::Profile;
use coracle::{ContainerBuilder, Engine, Stdio};

/// What the code may take.
const TIME: Duration = Duration::from_secs(2);
const MEMORY_KIB: u32 = 256 * 1024;
const OUTPUT: u64 = 64 * 1024;

/// How it went.
enum Verdict {
    Ended(String, coracle::ExitStatus),
    TookTooLong,
    SaidTooMuch,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Ended(said, status) => write!(f, "{status}, said {said:?}"),
            Verdict::TookTooLong => f.write_str("took too long"),
            Verdict::SaidTooMuch => f.write_str("said too much"),
        }
    }
}

/// Programs and their libraries can be read, a small directory in memory can be written, and that is all.
fn sandbox(engine: &Engine) -> ContainerBuilder {
    let requirement = Requirement::default()
        .at_least(Aspect::FilesystemRead, Level::Full)
        .at_least(Aspect::Processes, Level::Full)
        .at_least(Aspect::Network, Level::Full)
        .at_least(Aspect::Syscalls, Level::Full)
        .at_least(Aspect::Privileges, Level::Full);
    let programs = ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| std::path::Path::new(path).exists());
    programs
        .fold(engine.sandbox(), ContainerBuilder::readable)
        .read_only(true)
        .mount(Mount::tmpfs("/tmp").option("size=16m").option("nr_inodes=1k"))
        .workdir("/tmp")
        .profile(Profile::UNTRUSTED_2026_11)
        .require(requirement)
        .init(true)
}

fn run(engine: &Engine, code: &str) -> coracle::Result<Verdict> {
    // The shell lowers its own limits for good before it becomes the code.
    let script = format!("ulimit -v {MEMORY_KIB}; ulimit -t 2; ulimit -c 0; exec /bin/sh -c \"$0\" 2>&1");
    let mut container = sandbox(engine).command(["/bin/sh", "-c", &script, code]).stdout(Stdio::Piped).spawn()?;
    let stdout = container.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut said = vec![];
        // Then the pipe is closed: whoever goes on writing gets SIGPIPE.
        stdout.map(|stdout| stdout.take(OUTPUT + 1).read_to_end(&mut said)).transpose().map(|_| said)
    });
    let status = container.wait_timeout(TIME)?;
    if status.is_none() {
        // All that came of it dies.
        container.kill()?;
        container.wait()?;
    }
    let said = reader.join().unwrap_or_else(|_| Ok(vec![])).unwrap_or_default();
    container.close()?;
    Ok(match status {
        None => Verdict::TookTooLong,
        Some(_) if said.len() as u64 > OUTPUT => Verdict::SaidTooMuch,
        Some(status) => Verdict::Ended(String::from_utf8_lossy(&said).trim().to_owned(), status),
    })
}

fn main() -> coracle::Result<()> {
    let root = std::env::temp_dir().join(format!("coracle-untrusted-{}", std::process::id()));
    let engine = Engine::open(&root)?;
    println!("enforced:\n{}", sandbox(&engine).command(["true"]).enforcement()?);
    for (what, code) in [
        ("computes", "echo $((6 * 7))"),
        ("writes where it may", "echo mine > file && cat file"),
        ("reads what is not its business", "cat /etc/passwd"),
        ("writes what is not its business", "echo x > /usr/bin/x"),
        ("asks for a network", "bash -c ': > /dev/tcp/127.0.0.1/80' || ls /sys/class/net"),
        ("looks for others", "ls /proc | grep -c '^[0-9]'"),
        ("wants root", "su root -c id || id -u"),
        ("takes memory", "x=a; while :; do x=$x$x; done"),
        ("never ends", "while :; do sleep 1; done"),
        ("talks", "while :; do echo on and on and on and on; done"),
        ("leaves somebody behind", "setsid sleep 1000 & echo bye"),
    ] {
        println!("code that {what}: {}", run(&engine, code)?);
    }
    drop(engine);
    // With a range of ids, too, there is nothing left in it that is not this user's.
    let _ = std::fs::remove_dir_all(root);
    Ok(())
}
