//! Sizes, ages and commands as people read them, in docker's forms.

use std::borrow::Cow;

use jiff::Timestamp;

/// Three digits and a decimal unit: `0B`, `999B`, `1.23kB`, `77.8MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would round to 1000 is the next unit's 1.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let number = format!("{value:.decimals$}");
    let number = if decimals > 0 { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{}", UNITS[unit])
}

/// How long ago an RFC 3339 time was: `About a minute ago`; `N/A` for what is no time.
pub fn ago(time: Option<&str>) -> String {
    match seconds_since(time) {
        Some(seconds) => format!("{} ago", duration(seconds)),
        None => "N/A".to_owned(),
    }
}

/// How long something has gone on since an RFC 3339 time.
pub fn since(time: Option<&str>) -> String {
    seconds_since(time).map(duration).unwrap_or_else(|| "an unknown time".to_owned())
}

fn seconds_since(time: Option<&str>) -> Option<u64> {
    let time: Timestamp = time?.parse().ok()?;
    // A clock that was set back makes ages negative.
    Some(u64::try_from(Timestamp::now().as_second() - time.as_second()).unwrap_or(0))
}

fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, (seconds + 1800) / 3600, seconds / 86400);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if days < 14 => format!("{days} days"),
        _ if days < 60 => format!("{} weeks", days / 7),
        _ if days < 730 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// At most `width` characters, the last of them an ellipsis where something was left out.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A word of a command as docker lists it: one with blanks stands between single quotes, and nothing else is changed.
pub fn quoted(word: &str) -> Cow<'_, str> {
    if word.contains(' ') { Cow::Owned(format!("'{word}'")) } else { Cow::Borrowed(word) }
}

/// The first 12 digits of a digest or ID.
pub fn short_id(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (12_345, "12.3kB"),
            (77_800_000, "77.8MB"),
            (100_000_000, "100MB"),
            (999_999, "1MB"),
            (9_999, "10kB"),
            (u64::MAX, "18.4EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn durations_grow_coarser() {
        let cases = [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86400, "3 days"),
            (20 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        assert_eq!(ago(None), "N/A");
        assert_eq!(ago(Some("yesterday")), "N/A");
        assert_eq!(ago(Some("2999-01-01T00:00:00Z")), "Less than a second ago");
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("äbcd", 3), "äb…");
        assert_eq!(["a", "a b", ""].map(quoted), ["a", "'a b'", ""]);
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
    }
}
