//! What an image is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// The operating system and processor that an image is made for, in Go's words (`linux`, `amd64`, `v8`).
///
/// Values that were read from a document are kept as they were written; [`normalized`](Platform::normalized) brings
/// them into the one spelling that containerd also uses (`x86_64` → `amd64`, `aarch64` → `arm64`, `armhf` → `arm/v7`;
/// the baseline variants `amd64/v1` and `arm64/v8` → no variant). Comparison by [`matches`](Platform::matches) and
/// [`rank`](Platform::rank) normalises both sides.
///
/// ```
/// use coracle::Platform;
///
/// let image: Platform = "linux/aarch64/v8".parse()?;
/// assert_eq!(image.to_string(), "linux/arm64");
/// let host: Platform = "linux/arm/v7".parse()?;
/// assert!(host.matches(&"linux/arm/v6".parse()?));
/// assert!(!host.matches(&"linux/amd64".parse()?));
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, …
    pub os: String,
    /// `amd64`, `arm64`, `riscv64`, …
    pub architecture: String,
    /// A refinement of the architecture: `v7`, `v8`, `v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The version of the operating system; Windows images have one.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features that the operating system must have; Windows images may name some.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// The platform of `os` and `architecture`, normalised.
    pub fn new(os: &str, architecture: &str) -> Platform {
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
            os_version: None,
            os_features: Vec::new(),
        }
        .normalized()
    }

    /// The platform that this program was built for. 32-bit arm counts as `v7`; the levels of amd64 above the
    /// baseline are not detected.
    pub fn host() -> Platform {
        Platform::new(std::env::consts::OS, go_architecture())
    }

    /// The same platform in the one spelling.
    pub fn normalized(&self) -> Platform {
        let mut os = self.os.to_ascii_lowercase();
        if os == "macos" {
            os = "darwin".to_owned();
        }
        let variant = self.variant.as_deref().unwrap_or("").to_ascii_lowercase();
        let architecture = self.architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", String::new()),
            ("x86_64" | "x86-64" | "amd64", "v1" | "1") => ("amd64", String::new()),
            ("x86_64" | "x86-64" | "amd64", _) => ("amd64", with_v(variant)),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "8.0") => ("arm64", String::new()),
            ("aarch64" | "arm64", "9" | "v9" | "v9.0" | "9.0") => ("arm64", "v9".to_owned()),
            ("aarch64" | "arm64", _) => ("arm64", with_v(variant)),
            ("armhf", _) => ("arm", "v7".to_owned()),
            ("armel", _) => ("arm", "v6".to_owned()),
            ("arm", "") => ("arm", "v7".to_owned()),
            ("arm", _) => ("arm", with_v(variant)),
            (other, _) => (other, variant),
        };
        Platform {
            os,
            architecture: architecture.to_owned(),
            variant: (!variant.is_empty()).then_some(variant),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// Whether an image for `image` runs on this platform.
    pub fn matches(&self, image: &Platform) -> bool {
        self.rank(image).is_some()
    }

    /// How well an image for `image` suits this platform: `None` not at all, `Some(0)` exactly, more is worse.
    ///
    /// An arm host takes lower variants, an arm64 host also 32-bit arm, an amd64 host lower levels and 386.
    pub fn rank(&self, image: &Platform) -> Option<usize> {
        let (host, image) = (self.normalized(), image.normalized());
        if host.os != image.os {
            return None;
        }
        // A version only binds where both sides name one (Windows).
        if let (Some(host), Some(image)) = (&host.os_version, &image.os_version)
            && host != image
        {
            return None;
        }
        let image = (image.architecture.as_str(), image.variant.as_deref().unwrap_or(""));
        host.accepted().iter().position(|(architecture, variant)| (architecture.as_str(), variant.as_str()) == image)
    }

    /// What a normalised host accepts, best first.
    fn accepted(&self) -> Vec<(String, String)> {
        let architecture = self.architecture.as_str();
        let variant = self.variant.as_deref().unwrap_or("");
        let mut accepted = vec![(architecture.to_owned(), variant.to_owned())];
        let level = variant.strip_prefix('v').and_then(|level| level.parse::<u8>().ok());
        let mut lower = |architecture: &str, from: u8, to: u8, bare: Option<u8>| {
            for level in (to..from).rev() {
                let variant = if bare == Some(level) { String::new() } else { format!("v{level}") };
                accepted.push((architecture.to_owned(), variant));
            }
        };
        match architecture {
            "arm" => lower("arm", level.unwrap_or(7).min(8), 5, None),
            "arm64" => {
                lower("arm64", level.unwrap_or(8).min(9), 8, Some(8));
                lower("arm", 9, 5, None);
            }
            "amd64" => {
                lower("amd64", level.unwrap_or(1).min(4), 1, Some(1));
                accepted.push(("386".to_owned(), String::new()));
            }
            _ => {}
        }
        accepted
    }
}

fn with_v(variant: String) -> String {
    if variant.starts_with(|c: char| c.is_ascii_digit()) { format!("v{variant}") } else { variant }
}

/// The build target's processor in Go's words.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "mips64" if cfg!(target_endian = "little") => "mips64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `os/architecture[/variant]`, or one of os and architecture alone; the host supplies the other.
    fn from_str(text: &str) -> Result<Platform> {
        let invalid =
            |why: &str| Error::new(ErrorKind::Invalid, format!("read the platform {text:?}")).because(why.to_owned());
        let mut parts = text.split('/');
        let mut next = || match parts.next() {
            None => Ok(None),
            Some(part) => {
                let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'(' | b')');
                if part.is_empty() || !part.bytes().all(fine) {
                    return Err(invalid("each part is a word of letters, digits, '_', '.' and '-'"));
                }
                Ok(Some(part))
            }
        };
        let (first, second, variant) = (next()?.unwrap_or(""), next()?, next()?);
        if next()?.is_some() {
            return Err(invalid("a platform is os/architecture/variant").remedy("linux/amd64"));
        }
        // `windows(10.0.17763)`
        let (os, os_version) = match first.split_once('(') {
            None => (first, None),
            Some((os, rest)) => {
                let version = rest.strip_suffix(')').ok_or_else(|| invalid("')' is missing"))?;
                (os, Some(version.to_owned()))
            }
        };
        let known_os = is_os(os);
        let (os, architecture) = match second {
            Some(architecture) => (os, architecture),
            None if known_os => (os, go_architecture()),
            None => (std::env::consts::OS, first),
        };
        let platform = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version,
            os_features: Vec::new(),
        }
        .normalized();
        if second.is_none() && !known_os && !is_architecture(&platform.architecture) {
            return Err(
                invalid("it is neither a known operating system nor a known architecture").remedy("linux/amd64")
            );
        }
        Ok(platform)
    }
}

fn is_os(word: &str) -> bool {
    let known = [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "ios",
        "js",
        "linux",
        "macos",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "wasip1",
        "windows",
    ];
    known.contains(&word.to_ascii_lowercase().as_str())
}

fn is_architecture(word: &str) -> bool {
    [
        "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le",
        "riscv64", "s390x", "wasm",
    ]
    .contains(&word)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if let Some(version) = &self.os_version {
            write!(f, "({version})")?;
        }
        write!(f, "/{}", self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[track_caller]
    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn one_spelling() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("linux/riscv64", "linux/riscv64"),
            ("s390x", "linux/s390x"),
            ("aarch64", "linux/arm64"),
        ] {
            assert_eq!(platform(text).to_string(), normal);
        }
        assert_eq!(platform("linux"), Platform::host());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "/", "linux/", "/amd64", "linux/amd64/v1/x", "li nux/amd64", "vax", "windows(1/amd64", "é"] {
            assert_eq!(bad.parse::<Platform>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn the_best_image_wins() {
        for (host, best_first) in [
            ("linux/arm/v7", &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"][..]),
            ("linux/arm64", &["linux/arm64/v8", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
            ("linux/amd64", &["linux/amd64", "linux/386"]),
            ("linux/amd64/v3", &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ] {
            let ranks: Vec<_> = best_first.iter().map(|text| platform(host).rank(&platform(text)).unwrap()).collect();
            assert!(ranks.is_sorted(), "{host}: {ranks:?}");
            assert_eq!(ranks[0], 0);
        }
        for (host, image) in [
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/386", "linux/amd64"),
            ("linux/amd64", "windows/amd64"),
            ("windows(1)/amd64", "windows(2)/amd64"),
        ] {
            assert!(!platform(host).matches(&platform(image)), "{host} {image}");
        }
    }

    #[test]
    fn serde_is_the_object_of_the_specification() {
        let json = r#"{"os":"windows","architecture":"amd64","os.version":"10.0"}"#;
        let it: Platform = serde_json::from_str(json).unwrap();
        assert_eq!(it.os_version.as_deref(), Some("10.0"));
        assert_eq!(serde_json::to_string(&it).unwrap(), json);
    }
}
