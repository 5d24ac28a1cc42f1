//! Progress bars on a terminal's standard error, and nothing anywhere else.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use coracle::image::{Observer, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::human;

/// The bars of one load or import; dropping it takes them off the screen.
pub struct Bars(Option<Shown>);

struct Shown {
    multi: MultiProgress,
    bars: Arc<Mutex<HashMap<String, ProgressBar>>>,
}

impl Bars {
    /// Bars, where somebody can see them.
    pub fn new(json: bool) -> Bars {
        let shown = !json && std::io::stderr().is_terminal();
        Bars(shown.then(|| Shown { multi: MultiProgress::new(), bars: Arc::default() }))
    }

    /// What the library tells about its progress.
    pub fn observer(&self) -> Option<Observer> {
        let Shown { multi, bars } = self.0.as_ref()?;
        let (multi, bars) = (multi.clone(), bars.clone());
        Some(Arc::new(move |progress| {
            let (key, name, verb, done, total) = match progress {
                Progress::Blob { name, done, total } => (format!("blob {name}"), name, "reading", done, total),
                Progress::Layer(layer) => {
                    let name = layer.diff_id.to_string();
                    (format!("layer {name}"), name.into(), "unpacking", layer.done, layer.total)
                }
                // Over before anybody could look; other kinds are not known here yet.
                _ => return,
            };
            // Small ones come and go too fast to be read.
            if total < 256 << 10 {
                return;
            }
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = bars.entry(key).or_insert_with(|| {
                // Shown when it is complete, not while it is put together.
                let hidden = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
                let name = crate::failure::one_line(&human::shorten(label(&name), 24));
                multi.add(hidden.with_style(style()).with_prefix(name).with_message(verb))
            });
            bar.set_position(done);
            if done >= total {
                bar.finish();
            }
        }))
    }
}

/// What tells one blob or layer from the others: the first digits of its digest, wherever that is in the name
/// (`sha256:<hex>`, `blobs/sha256/<hex>`, `<hex>/layer.tar`, `<hex>.json`).
fn label(name: &str) -> &str {
    let digest = |part: &&str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split([':', '/', '.']).find(digest).map_or(name, human::short_id)
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{prefix:12} {msg:9} [{bar:32}] {bytes}/{total_bytes}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some(Shown { multi, .. }) = &self.0 {
            // A terminal that is gone needs no tidying.
            let _ = multi.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_called_after_digests() {
        let hex = "0123456789abcdef".repeat(4);
        for name in ["sha256:HEX", "blobs/sha256/HEX", "HEX/layer.tar", "HEX.json", "HEX"] {
            assert_eq!(label(&name.replace("HEX", &hex)), "0123456789ab", "{name}");
        }
        assert_eq!(label("layer.tar"), "layer.tar");
        assert_eq!(label("rootfs/deadbeef.tar"), "rootfs/deadbeef.tar");
    }
}
