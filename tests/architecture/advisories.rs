//! The table of past advisories names tests that are there.

use super::assert_none;
use super::source::package;

const TABLE: &str = "src/_docs/threats.md";

/// Why nothing guards against it.
const EXCUSE: &str = "does not reach us: ";

/// A row of the table: the advisories, and what it says about us.
struct Row {
    ids: Vec<String>,
    here: String,
}

fn rows(text: &str) -> Vec<Row> {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| ")).map(cells).filter(|cells| cells.len() == 3);
    rows.map(|cells| Row { ids: ids(&cells[0]), here: cells[2].clone() }).filter(|row| !row.ids.is_empty()).collect()
}

/// `CVE-...` and `GHSA-...` in a text.
fn ids(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    words.filter(|word| word.starts_with("CVE-") || word.starts_with("GHSA-")).map(str::to_owned).collect()
}

/// Name and comments of a test, in lower case; `None` where the file has no such test.
fn test_of(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(package().join(file)).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")))?;
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    let above: Vec<&str> = above.copied().collect();
    let comments: Vec<&str> = above.iter().rev().map(|line| line.trim_start_matches("///")).collect();
    above.contains(&"#[test]").then(|| format!("{} {}", name.replace('_', "-"), comments.join(" ")).to_lowercase())
}

/// What is wrong with a row.
fn faults(row: &Row) -> Vec<String> {
    let tests: Vec<(&str, &str)> = row.here.split('`').filter_map(|text| text.split_once("::")).collect();
    let ids = row.ids.join(", ");
    if tests.is_empty() {
        let excused = row.here.strip_prefix(EXCUSE).is_some_and(|why| !why.is_empty());
        return if excused { vec![] } else { vec![format!("{ids}: neither a test nor a reason")] };
    }
    let mut faults = Vec::new();
    let mut said = String::new();
    for (file, name) in tests {
        match test_of(file, name) {
            Some(test) => said.push_str(&test),
            None => faults.push(format!("{ids}: {file} has no test {name}")),
        }
    }
    let silent = row.ids.iter().filter(|id| !ids_in(&said, id));
    faults.extend(silent.map(|id| format!("{id}: its test does not name it")));
    faults
}

fn ids_in(said: &str, id: &str) -> bool {
    let id = id.to_lowercase();
    said.match_indices(&id).any(|(at, _)| !said[at + id.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

#[test]
fn every_advisory_has_its_test_or_a_reason() {
    let rows = rows(&std::fs::read_to_string(package().join(TABLE)).unwrap());
    assert!(rows.len() > 25, "found only {} rows", rows.len());
    let mut violations: Vec<String> = rows.iter().flat_map(faults).collect();
    let mut all: Vec<&String> = rows.iter().flat_map(|row| &row.ids).collect();
    all.sort();
    violations
        .extend(all.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| format!("{} is there twice", pair[0])));
    assert_none("advisories in src/_docs/threats.md", &violations);
}

#[test]
fn a_row_without_a_test_is_found() {
    let row = |here: &str| Row { ids: vec!["CVE-2019-5736".into()], here: here.into() };
    assert_eq!(faults(&row("does not reach us: there is none")).len(), 0);
    for wrong in [
        "",
        "does not reach us: ",
        "`tests/container/security.rs::no_such_test`",
        "`tests/no/such/file.rs::the_carried_program_cannot_be_written`",
        // Not a test.
        "`tests/container/security.rs::hostile`",
        // Of another advisory.
        "`tests/container/security.rs::a_huge_passwd_is_refused`",
    ] {
        assert!(!faults(&row(wrong)).is_empty(), "{wrong}");
    }
    assert_eq!(faults(&row("`tests/container/security.rs::the_carried_program_cannot_be_written`")).len(), 0);
}
