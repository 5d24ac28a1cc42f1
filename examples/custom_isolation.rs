//! Two isolation backends of one's own: one that stands on namespaces and adds to what they do, and one that starts from a
//! plan that isolates nothing. Both run the contract that every backend keeps.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coracle::container::Mount;
use coracle::isolation::{
    Aspect, Enforcement, ExecRequest, Ground, Isolation, Level, Namespaces, Plan, Request, Requirement,
};
use coracle::security::Landlock;
use coracle::{ContainerBuilder, EngineOptions, Error, ErrorKind, Result, contract};

/// `RLIMIT_NOFILE` and `RLIMIT_CORE` of getrlimit(2).
const OPEN_FILES: u32 = 7;
const CORE_FILES: u32 = 4;

/// Namespaces, and on top of them: a list of what was launched, few open files, and no TCP by landlock, whatever network the
/// caller asked for.
#[derive(Debug, Default)]
struct Recorded {
    launched: Mutex<Vec<String>>,
    execs: AtomicU64,
}

impl Isolation for Recorded {
    fn name(&self) -> &'static str {
        "recorded namespaces"
    }

    fn enforcement(&self, request: &Request<'_>) -> Enforcement {
        let mut enforcement = Namespaces.enforcement(request).by(self.name());
        match request.host().landlock_abi() {
            Some(4..) => enforcement.note(Aspect::Network, "no TCP, by landlock"),
            _ => enforcement.lower(
                Aspect::Network,
                Level::Partial,
                "TCP was to be refused by landlock, which is missing",
            ),
        }
        enforcement
    }

    fn plan(&self, request: Request<'_>) -> Result<Plan> {
        let (command, abi) = (request.command().join(" "), request.host().landlock_abi());
        let mut plan = Namespaces.plan(request)?;
        restrict(&mut plan, abi)?;
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        Ok(plan)
    }

    fn exec(&self, request: ExecRequest<'_>) -> Result<Plan> {
        self.execs.fetch_add(1, Ordering::Relaxed);
        let abi = request.host().landlock_abi();
        let mut plan = Namespaces.exec(request)?;
        // A further command is the container's equal.
        restrict(&mut plan, abi)?;
        Ok(plan)
    }
}

/// Everything that the namespaces show is allowed; what is handled and not listed is TCP.
fn restrict(plan: &mut Plan, abi: Option<u32>) -> Result<()> {
    let Some(abi) = abi else { return Ok(()) };
    plan.limit(CORE_FILES, 0);
    plan.limit(OPEN_FILES, 256);
    plan.no_new_privileges();
    plan.landlock(Landlock::nothing().write("/").write("/dev").outside(), abi)
}

/// No namespaces: the host's own tree, in which only what was named can be written. Like the crate's own rung, and stricter: the
/// command never sees a file of `/home` or `/root`.
#[derive(Debug)]
struct Modest;

impl Isolation for Modest {
    fn name(&self) -> &'static str {
        "modest"
    }

    fn ground(&self) -> Ground {
        Ground::Host
    }

    fn enforcement(&self, request: &Request<'_>) -> Enforcement {
        let mut enforcement = coracle::isolation::Landlock.enforcement(request).by(self.name());
        if !request.without_network() {
            enforcement.lower(Aspect::Network, Level::None, "the host's network is used");
        }
        enforcement
    }

    fn plan(&self, request: Request<'_>) -> Result<Plan> {
        let Some(abi) = request.host().landlock_abi() else {
            return Err(Error::of_backend(ErrorKind::Unsupported, "confine the command", "there is no landlock here"));
        };
        let mut ruleset = Landlock::nothing();
        for path in ["/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/dev", "/sys"] {
            if Path::new(path).exists() {
                ruleset.read(path);
            }
        }
        ruleset.write("/dev/null");
        for path in request.writable() {
            ruleset.write(path);
        }
        let mut plan = request.bare_plan()?;
        plan.limit(CORE_FILES, 0);
        plan.landlock(&ruleset, abi)?;
        Ok(plan)
    }
}

fn try_it(what: &str, builder: &ContainerBuilder, script: &str) -> Result<()> {
    let out = builder.clone().command(["/bin/sh", "-c", script]).output()?;
    let said = [out.stdout, out.stderr].concat();
    println!("{what}: {}: {}", out.status, String::from_utf8_lossy(&said).trim());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("coracle-custom-{}", std::process::id()));
    let root = |name: &str| EngineOptions::new(dir.join(name));
    let recorded = Arc::new(Recorded::default());
    let engine = root("recorded").isolation_backend(recorded.clone()).open()?;
    try_it("recorded", &engine.sandbox(), "ulimit -n; echo $$")?;
    println!("  kept: {}", contract::isolation(&|| engine.sandbox(), "/tmp")?.join("\n  kept: "));
    let container = engine.sandbox().command(["sleep", "60"]).spawn()?;
    let out = container.exec().command(["/bin/sh", "-c", "ulimit -n"]).output()?;
    println!("a further command: {} {}", out.status, String::from_utf8_lossy(&out.stdout).trim());
    container.close()?;
    println!("launched: {}", recorded.launched.lock().unwrap_or_else(PoisonError::into_inner).len());

    let engine = root("modest").isolation_backend(Arc::new(Modest)).open()?;
    if engine.host().landlock_abi().is_none() {
        println!("there is no landlock here");
        drop(engine);
        std::fs::remove_dir_all(dir)?;
        return Ok(());
    }
    let work = dir.join("work");
    std::fs::create_dir_all(&work)?;
    let sandbox = || {
        let builder = engine.sandbox().read_only(true).mount(Mount::bind(&work, &work));
        builder.require(Requirement::nothing())
    };
    try_it("modest", &sandbox(), "ls /home; ls -d /usr/bin")?;
    println!("  kept: {}", contract::isolation(&sandbox, &work)?.join("\n  kept: "));
    drop(engine);
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}
