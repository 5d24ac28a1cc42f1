//! doctor: what this host can do, tried out where trying is harmless. version.

use std::time::Instant;

use coracle::isolation::{Aspect, Enforcement};
use coracle::probe::{Feature, Finding, Host, State};
use coracle::{Engine, ErrorKind};
use serde_json::{Value, json};

use crate::failure::{Failure, one_line};
use crate::table::Table;
use crate::{Context, options};

/// What is there to report when a root can be opened.
struct Opened {
    engine: Engine,
    enforcement: Result<Enforcement, Failure>,
    /// Milliseconds that a sandbox took from nothing to its end.
    trial: Result<f64, Failure>,
}

/// Exits with 0 when a container runs here, else with 1.
pub fn doctor(context: &mut Context) -> Result<u8, Failure> {
    let findings = Host::probe().report();
    let opened = context.engine().map(|engine| {
        let enforcement = engine.sandbox().command(["true"]).enforcement().map_err(Failure::from);
        let trial = trial(&engine);
        Opened { engine, enforcement, trial }
    });
    if context.json {
        context.out.pretty_json(&report(&findings, &opened));
    } else {
        show(context, &findings, &opened);
    }
    Ok(match opened {
        Ok(Opened { trial: Ok(_), .. }) => 0,
        _ => 1,
    })
}

/// Runs the smallest sandbox that there is, twice: the first start also starts what later ones share.
fn trial(engine: &Engine) -> Result<f64, Failure> {
    let mut milliseconds = 0.0;
    for _ in 0..2 {
        let begin = Instant::now();
        let output = engine.sandbox().command(["true"]).output()?;
        milliseconds = begin.elapsed().as_secs_f64() * 1000.0;
        if !output.status.success() {
            let said = one_line(&String::from_utf8_lossy(&output.stderr));
            let cause = format!("`true` ended with {}: {said}", output.status);
            return Err(Failure::new(ErrorKind::Launch, "run a sandbox", cause));
        }
    }
    Ok(milliseconds)
}

fn report(findings: &[Finding], opened: &Result<Opened, Failure>) -> Value {
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "findings": findings,
        "runs_containers": false,
    });
    let Some(object) = report.as_object_mut() else { return report };
    match opened {
        Err(failure) => {
            object.insert("error".to_owned(), failure.json());
        }
        Ok(Opened { engine, enforcement, trial }) => {
            let (snapshotter, note) = engine.snapshotter();
            object.insert("root".to_owned(), engine.root().display().to_string().into());
            object.insert("identity".to_owned(), engine.identity().into());
            object.insert("snapshotter".to_owned(), json!({ "name": snapshotter, "note": note }));
            object.insert("leftovers".to_owned(), json!(engine.leftovers()));
            object.insert("runs_containers".to_owned(), trial.is_ok().into());
            let (milliseconds, error) = match trial {
                Ok(milliseconds) => (json!(milliseconds), Value::Null),
                Err(failure) => (Value::Null, failure.json()),
            };
            object.insert("trial".to_owned(), json!({ "milliseconds": milliseconds, "error": error }));
            let enforcement = match enforcement {
                Err(failure) => json!({ "error": failure.json() }),
                Ok(enforcement) => json!({
                    "backend": enforcement.backend(),
                    "aspects": Aspect::ALL.map(|aspect| json!({
                        "aspect": options::aspect_name(aspect),
                        "level": enforcement.level(aspect).to_string(),
                        "reason": enforcement.reason(aspect),
                    })),
                }),
            };
            object.insert("enforcement".to_owned(), enforcement);
        }
    }
    report
}

fn show(context: &mut Context, findings: &[Finding], opened: &Result<Opened, Failure>) {
    let out = &mut context.out;
    let mut table = Table::new(["FEATURE", "HERE", "DETAIL"]);
    for finding in findings {
        let state = match finding.state {
            State::Yes => "yes",
            State::No => "no",
            State::Partial => "partly",
        };
        table.row([finding.what.name().to_owned(), state.to_owned(), finding.detail.to_string()]);
    }
    out.text(&table.render());
    let lacking = findings.iter().filter(|finding| finding.state != State::Yes && !needless(finding, findings));
    let lacking: Vec<&Finding> = lacking.collect();
    if !lacking.is_empty() {
        out.line("\nWhat is missing, and what would change that:");
        for finding in lacking {
            let cause = finding.cause.as_deref().unwrap_or(&finding.detail);
            out.line(format_args!("  {}: {}", finding.what.name(), one_line(cause)));
            if let Some(remedy) = &finding.remedy {
                out.line(format_args!("    try: {}", one_line(remedy)));
            }
        }
    }
    match opened {
        Err(failure) => {
            out.line(format_args!("\nNo container can be made: {}", failure.message()));
        }
        Ok(Opened { engine, enforcement, trial }) => {
            let (snapshotter, note) = engine.snapshotter();
            out.line(format_args!("\nRoot: {}", engine.root().display()));
            out.line(format_args!("Identity: {}", engine.identity()));
            let note = note.map(|note| format!(" ({})", one_line(note))).unwrap_or_default();
            out.line(format_args!("Snapshots: {snapshotter}{note}"));
            if !engine.leftovers().is_empty() {
                out.line("\nLeft by killed programs, and not to be removed or marked now:");
                for leftover in engine.leftovers() {
                    out.line(format_args!("  {}", one_line(leftover)));
                }
            }
            // What a container would be isolated from is no answer where there is none.
            if let Err(failure) = trial {
                return out.line(format_args!("\nTried: no sandbox runs here: {}", failure.message()));
            }
            match enforcement {
                Ok(enforcement) => {
                    out.line(format_args!("\nA container by default ({}):", enforcement.backend()));
                    for line in enforcement.to_string().lines() {
                        out.line(format_args!("  {}", one_line(line)));
                    }
                }
                Err(failure) => out.line(format_args!("\nA container by default: {}", failure.message())),
            }
            if let Ok(milliseconds) = trial {
                out.line(format_args!("\nTried: a sandbox ran `true` in {milliseconds:.1} ms"));
            }
        }
    }
}

/// What only matters to others: root is no lack for somebody who can do without it, nor is a lower rung for whoever stands
/// on the first.
fn needless(finding: &Finding, findings: &[Finding]) -> bool {
    let there = |what: Feature| findings.iter().any(|other| other.what == what && other.state == State::Yes);
    match finding.what {
        Feature::Root => there(Feature::UserNamespaces),
        Feature::LandlockIsolation | Feature::ChrootIsolation => there(Feature::NamespaceIsolation),
        _ => false,
    }
}

pub fn version(context: &mut Context) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        context.out.json(&json!({
            "version": version,
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
        }));
    } else {
        context.out.line(format_args!("coracle {version}"));
    }
    Ok(0)
}
