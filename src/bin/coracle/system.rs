//! system: check, df, prune.

use coracle::system::{Depth, DiskUsage, Finding, Garbage, GarbageKind, PruneOptions, Pruned, Report, Share};
use coracle::{Engine, ErrorKind, Reference};
use serde_json::{Value, json};

use crate::cli::{self, System};
use crate::failure::{Failure, one_line};
use crate::table::Table;
use crate::{Context, human};

pub fn system(context: &mut Context, command: &System) -> Result<u8, Failure> {
    match command {
        System::Check(arguments) => check(context, arguments),
        System::Df(arguments) => usage(context, arguments),
        System::Prune(arguments) => prune(context, arguments),
    }
}

fn check(context: &mut Context, arguments: &cli::Check) -> Result<u8, Failure> {
    let depth = if arguments.quick { Depth::Quick } else { Depth::Full };
    let report = existing(context, "check the root")?.check(depth)?;
    if context.json {
        let told = |findings: &[Finding]| -> Value {
            let object = |finding: &Finding| {
                let path = finding.path.display().to_string();
                json!({ "path": path, "cause": finding.cause, "remedy": finding.remedy })
            };
            findings.iter().map(object).collect()
        };
        context.out.json(&json!({
            "whole": report.is_whole(),
            "findings": told(&report.findings),
            "unchecked": told(&report.unchecked),
            "garbage": garbage_json(&report.garbage),
            "names": report.names,
            "blobs": report.blobs,
            "verified": report.verified,
            "layers": report.layers,
            "containers": report.containers,
            "snapshots": report.snapshots,
        }));
    } else {
        show_check(context, &report);
    }
    // What could not be looked at must not pass for whole.
    Ok(if report.is_whole() && report.unchecked.is_empty() { 0 } else { 1 })
}

/// The engine over a root that is there: who asks about one that is not has mistyped it.
fn existing(context: &Context, step: &str) -> Result<Engine, Failure> {
    if let Some(root) = &context.root
        && !root.join("coracle.json").exists()
        && std::fs::read_dir(root)
            .map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |mut entries| entries.next().is_none())
    {
        let cause = format!("there is no root at {root:?}");
        return Err(Failure::new(ErrorKind::NotFound, step, cause).remedy("correct the path after --root"));
    }
    context.engine()
}

fn show_check(context: &mut Context, report: &Report) {
    let out = &mut context.out;
    for finding in &report.findings {
        out.line(format_args!("Damaged: {}", one_line(&finding.to_string())));
    }
    for finding in &report.unchecked {
        out.line(format_args!("Not looked at: {}", one_line(&finding.to_string())));
    }
    if !report.garbage.is_empty() {
        let kinds = kinds(&report.garbage);
        out.line(format_args!("Garbage, no damage: {kinds}; `coracle system prune` removes it"));
    }
    let entries =
        if report.names == 1 { "1 index entry".to_owned() } else { format!("{} index entries", report.names) };
    let blobs = count(report.blobs, "blob");
    let (layers, containers) = (count(report.layers, "layer"), count(report.containers, "container"));
    let snapshots = count(report.snapshots, "snapshot");
    let verified = human::size(report.verified);
    let damage = match report.findings.len() {
        0 => "nothing is damaged".to_owned(),
        number => {
            format!("{} damaged", if number == 1 { "1 thing is".to_owned() } else { format!("{number} things are") })
        }
    };
    out.line(format_args!(
        "Checked {entries}, {blobs} ({verified} read), {layers}, {containers}, {snapshots}: {damage}"
    ));
}

/// `3 blobs, 1 layer`.
fn kinds(garbage: &[Garbage]) -> String {
    let mut kinds: Vec<(GarbageKind, usize)> = vec![];
    for piece in garbage {
        match kinds.iter_mut().find(|(kind, _)| *kind == piece.kind) {
            Some((_, number)) => *number += 1,
            None => kinds.push((piece.kind, 1)),
        }
    }
    let kinds = kinds.into_iter().map(|(kind, number)| match kind {
        GarbageKind::Temporary => format!("{number} temporary"),
        kind => count(number, kind.name()),
    });
    kinds.collect::<Vec<_>>().join(", ")
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn garbage_json(garbage: &[Garbage]) -> Vec<Value> {
    garbage.iter().map(|piece| json!({ "kind": piece.kind.name(), "path": piece.path.display().to_string() })).collect()
}

fn usage(context: &mut Context, arguments: &cli::Df) -> Result<u8, Failure> {
    let usage = existing(context, "measure the root")?.disk_usage()?;
    let shares = shares(&usage);
    if context.json {
        let mut object = json!({ "bytes": usage.total.bytes, "inodes": usage.total.inodes });
        if let Some(object) = object.as_object_mut() {
            for (name, share) in shares {
                let value = json!({
                    "count": share.count,
                    "active": share.active,
                    "bytes": share.usage.bytes,
                    "inodes": share.usage.inodes,
                    "reclaimable": share.reclaimable,
                });
                object.insert(name.to_lowercase(), value);
            }
            object.insert("other".to_owned(), json!({ "bytes": usage.other.bytes, "inodes": usage.other.inodes }));
            let items = usage.items.iter().map(|item| {
                json!({
                    "path": item.path.display().to_string(),
                    "bytes": item.usage.bytes,
                    "inodes": item.usage.inodes,
                    "reclaimable": item.reclaimable,
                })
            });
            object.insert("items".to_owned(), items.collect());
        }
        context.out.json(&object);
        return Ok(0);
    }
    let mut table = Table::new(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    for (name, share) in shares {
        let part = share.reclaimable.saturating_mul(100).checked_div(share.usage.bytes).unwrap_or(0);
        table.row([
            name.to_owned(),
            share.count.to_string(),
            share.active.to_string(),
            human::size(share.usage.bytes),
            format!("{} ({part}%)", human::size(share.reclaimable)),
        ]);
    }
    let none = String::new;
    table.row(["Other".to_owned(), none(), none(), human::size(usage.other.bytes), none()]);
    table.row(["All".to_owned(), none(), none(), human::size(usage.total.bytes), none()]);
    context.out.text(&table.render());
    if arguments.verbose && !usage.items.is_empty() {
        let mut table = Table::new(["PATH", "SIZE", "FILES", "RECLAIMABLE"]);
        for item in &usage.items {
            table.row([
                item.path.display().to_string(),
                human::size(item.usage.bytes),
                item.usage.inodes.to_string(),
                human::size(item.reclaimable),
            ]);
        }
        context.out.line("");
        context.out.text(&table.render());
    }
    Ok(0)
}

fn shares(usage: &DiskUsage) -> [(&'static str, Share); 5] {
    [
        ("Images", usage.images),
        ("Layers", usage.layers),
        ("Containers", usage.containers),
        ("Snapshots", usage.snapshots),
        ("Temporary", usage.temporary),
    ]
}

fn prune(context: &mut Context, arguments: &cli::Prune) -> Result<u8, Failure> {
    let options =
        PruneOptions { all_images: arguments.all, containers: arguments.containers, dry_run: arguments.dry_run };
    let pruned = context.engine()?.prune(&options)?;
    if context.json {
        context.out.json(&json!({
            "dry_run": options.dry_run,
            "containers": pruned.containers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "untagged": pruned.untagged.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "images": pruned.images.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "blobs": pruned.blobs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "layers": pruned.layers.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "garbage": garbage_json(&pruned.garbage),
            "freed": { "bytes": pruned.freed.bytes, "inodes": pruned.freed.inodes },
        }));
    } else {
        show_pruned(context, &pruned, options.dry_run);
    }
    let status = if pruned.failures.is_empty() { 0 } else { 1 };
    for failure in pruned.failures {
        Failure::from(failure).tell(context.json);
    }
    Ok(status)
}

fn show_pruned(context: &mut Context, pruned: &Pruned, dry_run: bool) {
    let out = &mut context.out;
    for id in &pruned.containers {
        out.line(format_args!("Container: {id}"));
    }
    for name in &pruned.untagged {
        out.line(format_args!("Name: {}", name.familiar()));
    }
    for id in &pruned.images {
        out.line(format_args!("Image: {id}"));
    }
    for digest in &pruned.blobs {
        out.line(format_args!("Blob: {digest}"));
    }
    for path in &pruned.layers {
        out.line(format_args!("Layer: {}", one_line(&path.display().to_string())));
    }
    for piece in &pruned.garbage {
        out.line(format_args!("Garbage: {}", one_line(&piece.path.display().to_string())));
    }
    let what = if dry_run { "Would free" } else { "Freed" };
    out.line(format_args!("{what}: {}", human::size(pruned.freed.bytes)));
}
