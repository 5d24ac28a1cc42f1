//! The report: one page for each bench, and one that leads to them. No network is needed to look at it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// What this run has put into its page so far.
static PAGE: Mutex<String> = Mutex::new(String::new());

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    table{border-collapse:collapse}td,th{padding:.1rem .8rem;text-align:right}td:first-child{text-align:left}\
    circle{fill:#2a6fb0;fill-opacity:.45}.floor circle{fill:#999}.median{stroke:#c33;stroke-width:2}\
    text{font:12px sans-serif}line.axis{stroke:#ccc}";

pub fn add_comparison(title: &str, names: &[&str], times: &[Vec<Duration>]) {
    let medians: Vec<f64> = times
        .iter()
        .map(|times| {
            let mut sorted = times.clone();
            sorted.sort();
            sorted[sorted.len() / 2].as_secs_f64() * 1e3
        })
        .collect();
    let mut html = format!("<h2>{}</h2>\n{}\n<table><tr><th></th>", text(title), plot(names, times, &medians));
    html.push_str("<th>median</th><th>× the first</th></tr>\n");
    for (name, median) in names.iter().zip(&medians) {
        let ratio = median / medians[0];
        let _ = writeln!(html, "<tr><td>{}</td><td>{median:.3} ms</td><td>{ratio:.2}</td></tr>", text(name));
    }
    html.push_str("</table>\n");
    add(&html);
}

pub fn add_fact(fact: &str) {
    add(&format!("<p>{}</p>\n", text(fact)));
}

/// Every turn as a dot, the median as a line, one row for each candidate.
fn plot(names: &[&str], times: &[Vec<Duration>], medians: &[f64]) -> String {
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 600.0;
    const ROW: f64 = 34.0;
    let millis = |time: &Duration| time.as_secs_f64() * 1e3;
    // The slowest percent may be anywhere; it would press all the others together.
    let end = times.iter().zip(medians).map(|(times, median)| {
        let most = times.iter().map(millis).fold(0.0, f64::max);
        most.min(median * 3.0)
    });
    let end = end.fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    let at = |value: f64| LEFT + (value / end).min(1.0) * WIDTH;
    let height = ROW * names.len() as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" width=\"100%\">", LEFT + WIDTH + 20.0, height + 24.0);
    for tick in 0..=5 {
        let value = end * f64::from(tick) / 5.0;
        let x = at(value);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{height}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.2} ms</text>",
            height + 16.0
        );
    }
    for (row, ((name, times), median)) in names.iter().zip(times).zip(medians).enumerate() {
        let middle = ROW * (row as f64 + 0.5);
        let class = if row == 0 { "floor" } else { "ours" };
        let _ = write!(svg, "<g class=\"{class}\"><text x=\"0\" y=\"{:.1}\">{}</text>", middle + 4.0, text(name));
        for (turn, time) in times.iter().enumerate() {
            // Spread a little, so that equal times are seen as several.
            let y = middle + (turn % 7) as f64 * 3.0 - 9.0;
            let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\"/>", at(millis(time)));
        }
        let (x, top, bottom) = (at(*median), middle - 13.0, middle + 13.0);
        let _ =
            write!(svg, "<line class=\"median\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/></g>");
    }
    svg.push_str("</svg>");
    svg
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Adds to this bench's page and writes it anew. Trials measure nothing.
fn add(html: &str) {
    if super::is_trial() {
        return;
    }
    let mut page = PAGE.lock().unwrap();
    let (directory, bench) = place();
    let first = page.is_empty();
    page.push_str(html);
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join(format!("{bench}.html"));
    std::fs::write(&file, document(&bench, &page)).unwrap();
    if first {
        println!("report: {}", directory.join("index.html").display());
        write_index(&directory);
    }
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\n\
         <h1>{title}</h1>\n<p>{}</p>\n{body}</html>\n",
        text(&machine())
    )
}

fn write_index(directory: &Path) {
    let mut benches: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| entry.unwrap().path().file_stem()?.to_str().map(str::to_owned))
        .filter(|bench| bench != "index")
        .collect();
    benches.sort();
    let links: String = benches.iter().map(|bench| format!("<li><a href=\"{bench}.html\">{bench}</a>\n")).collect();
    std::fs::write(directory.join("index.html"), document("coracle: benches", &format!("<ul>{links}</ul>"))).unwrap();
}

/// Where reports go and what this bench is called: from where cargo has put the program, `<target>/release/deps/<bench>-<hash>`.
fn place() -> (PathBuf, String) {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let name = program.file_stem().unwrap_or_default().to_string_lossy();
    let bench = name.rsplit_once('-').map_or(&*name, |(bench, _)| bench);
    (target.join("report"), bench.to_owned())
}

/// Which machine this is, as far as it matters to times.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("a processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} × {}, Linux {}", model.trim_matches([':', '\t', ' ']), kernel.trim())
}
