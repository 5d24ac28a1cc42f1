//! Conformance suites: what an implementation of one of this crate's traits has to keep, as code that tries it.
//!
//! Every backend of the crate runs them in its tests; whoever writes one of their own runs them too:
//!
//! ```no_run
//! # use std::sync::Arc;
//! use coracle::{EngineOptions, contract, layer::Ownership, snapshot};
//!
//! # fn main() -> coracle::Result<()> {
//! // In place of `Overlay`, your own.
//! let backend = Arc::new(snapshot::Overlay::new(Ownership::Full));
//! let engine = EngineOptions::new("/var/tmp/a-root-for-this").snapshot_backend(backend).open()?;
//! for clause in contract::snapshotter(&engine)? {
//!     println!("kept: {clause}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The suite of [isolation] takes what describes a container in place of an engine, since not every backend runs an image.
//!
//! A suite stops at the first clause that is broken: the error's step is the clause, its cause what was found instead.

mod cgroup;
mod fixture;
mod isolation;
mod snapshotter;

pub use cgroup::cgroup_driver;
pub use isolation::isolation;
pub use snapshotter::snapshotter;

use crate::{Error, ErrorKind, Result};

/// What a suite is at: its error and its report name it.
type Clause = &'static str;

/// An error unless something holds.
fn require(holds: bool, clause: Clause, found: impl Into<String>) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("keep the contract, which says: {clause}")).because(found.into()))
}

/// Tries the parts of a suite in turn; the clauses, when all of them are kept.
fn run<P: Copy>(parts: &[(Clause, P)], attempt: impl Fn(P, Clause) -> Result<()>) -> Result<Vec<&'static str>> {
    for (clause, part) in parts {
        in_clause(clause, attempt(*part, clause))?;
    }
    Ok(parts.iter().map(|(clause, _)| *clause).collect())
}

/// Does something in several threads at once; the first error of one of them.
fn spread(threads: usize, clause: Clause, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let panicked = || Err(Error::new(ErrorKind::Invalid, clause).because("a thread panicked"));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| panicked()))
    })
}

/// A failure of what a clause asks for.
fn in_clause<T>(clause: Clause, result: Result<T>) -> Result<T> {
    result.map_err(|error| {
        let step = format!("keep the contract, which says: {clause}");
        Error::new(error.kind(), step).because(error.to_string()).source_is(error)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use crate::isolation::{Enforcement, Ground, Isolation, Landlock, Plan, Request, Requirement};
    use crate::layer::Ownership;
    use crate::snapshot::{Base, Changes, Copy, Snapshot, Snapshotter, Usage};
    use crate::{EngineOptions, Result};

    /// A backend that forgets something.
    #[derive(Debug)]
    struct Forgetful(Copy, &'static str);

    impl Snapshotter for Forgetful {
        fn name(&self) -> &'static str {
            "forgetful"
        }

        fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
            if self.1 == "prepare" {
                self.0.remove(dir)?;
            }
            self.0.prepare(dir, base)
        }

        fn changes(&self, dir: &Path) -> Changes {
            self.0.changes(dir)
        }

        fn usage(&self, dir: &Path) -> Result<Usage> {
            let usage = self.0.usage(dir)?;
            Ok(if self.1 == "usage" { Usage { bytes: usage.bytes / 2, ..usage } } else { usage })
        }

        fn freeze(&self, dir: &Path, into: &Path) -> Result<()> {
            if self.1 == "freeze" { Ok(()) } else { self.0.freeze(dir, into) }
        }

        fn remove(&self, dir: &Path) -> Result<()> {
            if self.1 == "remove" { Ok(()) } else { self.0.remove(dir) }
        }
    }

    #[test]
    fn every_driver_of_control_groups_keeps_the_contract() {
        use crate::cgroup::{Direct, Hierarchies, Parent};
        let parent = |which| Parent::OwnNamed(format!("coracle-contract-{which}-{}", std::process::id()));
        let hierarchies = || Hierarchies::detect().unwrap();
        super::cgroup_driver(&Direct::new(hierarchies(), parent("direct"))).unwrap();
        #[cfg(feature = "cgroups-rs")]
        super::cgroup_driver(&crate::cgroup::CgroupsRs::new(hierarchies(), parent("crate"))).unwrap();
    }

    /// A backend that says more than it does.
    #[derive(Debug)]
    struct Boastful(&'static str);

    impl Isolation for Boastful {
        fn name(&self) -> &'static str {
            "boastful"
        }

        fn ground(&self) -> Ground {
            Ground::Host
        }

        fn enforcement(&self, request: &Request<'_>) -> Enforcement {
            match self.0 {
                "limits" => Enforcement::full("boastful"),
                _ => Landlock.enforcement(request).by("boastful"),
            }
        }

        fn plan(&self, request: Request<'_>) -> Result<Plan> {
            let abi = request.host().landlock_abi().unwrap_or(0);
            let mut ruleset = crate::security::Landlock::nothing();
            match self.0 {
                "writes" => ruleset.write("/"),
                "processes" => ruleset.read("/").write("/dev").outside(),
                _ => ruleset.read("/").write("/dev"),
            };
            for path in request.writable() {
                ruleset.write(path);
            }
            let mut plan = request.bare_plan()?;
            plan.landlock(&ruleset, abi)?;
            Ok(plan)
        }
    }

    #[test]
    fn a_backend_that_boasts_is_found_out() {
        if crate::probe::Host::probe().landlock_abi().is_none_or(|abi| abi < 6) {
            eprintln!("SKIP: landlock is missing");
            assert!(std::env::var_os("CORACLE_NO_SKIP").is_none());
            return;
        }
        for (what, clause) in [
            ("writes", "what is not writable stays as it is"),
            ("processes", "processes outside are out of reach"),
            ("limits", "processes outside are out of reach"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let options = EngineOptions::new(dir.path().join("root")).isolation_backend(Arc::new(Boastful(what)));
            let engine = options.open().unwrap();
            let work = dir.path().join("work");
            std::fs::create_dir(&work).unwrap();
            let container = || {
                let builder = engine.sandbox().read_only(true).require(Requirement::nothing());
                builder.mount(crate::container::Mount::bind(&work, &work))
            };
            let error = super::isolation(&container, &work).unwrap_err().to_string();
            assert!(error.contains(clause), "{what}: {error}");
        }
    }

    #[test]
    fn a_broken_contract_is_told_by_its_clause() {
        for (what, clause) in [
            ("prepare", "prepare is idempotent"),
            ("usage", "usage is what du says"),
            ("freeze", "what is frozen is the base of others"),
            ("remove", "is left"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = nix::unistd::geteuid().is_root();
            let ownership = if root { Ownership::Full } else { Ownership::Single };
            let backend = Arc::new(Forgetful(Copy::new(ownership), what));
            let options = EngineOptions::new(dir.path().join("root")).single_id(true);
            let engine = options.snapshot_backend(backend).open().unwrap();
            let error = super::snapshotter(&engine).unwrap_err().to_string();
            assert!(error.contains(clause), "{what}: {error}");
            assert_eq!(engine.list_images().unwrap().len(), 0);
        }
    }
}
