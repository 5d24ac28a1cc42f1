//! One 512-byte header block: fields, numbers, checksum.

use super::BLOCK;

/// Which dialect the magic announces; it decides what the bytes after the link name mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// No magic: nothing after the link name is used.
    V7,
    /// POSIX: the name has a prefix field. Also the carrier of PAX.
    Ustar,
    /// Schilling's star: like POSIX with a shorter prefix and times behind it.
    Star,
    /// GNU: no prefix; times and the sparse map stand there. See [`Header::mistaken_prefix`].
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header {
    pub(super) block: [u8; BLOCK],
    pub(super) format: Format,
}

/// Why a field or block cannot be read; completes "the header's …".
pub(super) type Why = String;

impl Header {
    /// Checks the sum and finds the dialect.
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Header, Why> {
        let stated = number(&block[148..156]).map_err(|why| format!("checksum {why}"))?;
        // The field itself counts as spaces. Old programs summed signed bytes.
        let mut unsigned = 0u64;
        let mut signed = 0i64;
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        if stated != i128::from(unsigned) && stated != i128::from(signed) {
            return Err("checksum is wrong".into());
        }
        let format = match &block[257..265] {
            b"ustar\x0000" if &block[508..512] == b"tar\0" => Format::Star,
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Header { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name, with its prefix where the dialect has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[0..100]);
        let prefix = match self.format {
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::Gnu => self.mistaken_prefix(),
            Format::V7 => b"",
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// Go before 1.8 wrote a prefix into GNU headers, where the times of access and change have their place, and so did
    /// the engines of that time. Go reads such a prefix to this day, where the times are no numbers: layers with them
    /// are in use, and whoever checks images with Go's library sees those names.
    pub(super) fn mistaken_prefix(&self) -> &[u8] {
        let times = [&self.block[345..357], &self.block[357..369]];
        if times.into_iter().all(is_go_number) {
            return b"";
        }
        let prefix = text(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { b"" }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    /// Permission bits; the type that some programs store above them is dropped.
    pub(super) fn mode(&self) -> Result<u32, Why> {
        let mode = number(&self.block[100..108]).map_err(|why| format!("mode {why}"))?;
        // Only the low bits have a meaning, so a large value is not an error.
        Ok((mode & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, Why> {
        self.unsigned(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, Why> {
        self.unsigned(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, Why> {
        self.unsigned(124..136, "size")
    }

    /// Seconds since 1970; may be negative.
    pub(super) fn mtime(&self) -> Result<i64, Why> {
        let value = number(&self.block[136..148]).map_err(|why| format!("mtime {why}"))?;
        i64::try_from(value).map_err(|_| "mtime is out of range".into())
    }

    /// Major and minor number of a device node.
    pub(super) fn device(&self) -> Result<(u32, u32), Why> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        let part = |range, name: &str| {
            let value = self.unsigned(range, name)?;
            u32::try_from(value).map_err(|_| format!("{name} is out of range"))
        };
        Ok((part(329..337, "device major number")?, part(337..345, "device minor number")?))
    }

    fn unsigned(&self, range: std::ops::Range<usize>, name: &str) -> Result<u64, Why> {
        let value = number(&self.block[range]).map_err(|why| format!("{name} {why}"))?;
        u64::try_from(value).map_err(|_| format!("{name} is negative or out of range"))
    }
}

/// A field that ends at its first NUL or at its end.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Octal digits with spaces before and spaces or NULs after them, or GNU's base-256: the first bit set, the rest a
/// big-endian two's complement number.
pub(super) fn number(field: &[u8]) -> Result<i128, Why> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // The marker bit is not part of the number; the bit below it is the sign.
            let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
            for (at, byte) in field.iter().enumerate() {
                let byte = if at == 0 { byte & 0x7f | (if value < 0 { 0x80 } else { 0 }) } else { *byte };
                value = value.checked_mul(256).ok_or("is out of range")? | i128::from(byte);
            }
            Ok(value)
        }
        _ => {
            let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
            let digits = &field[start..];
            let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
            let (digits, rest) = digits.split_at(end);
            if !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
                return Err("has something behind its digits".into());
            }
            digits.iter().try_fold(0, |value: i128, digit| match digit {
                b'0'..=b'7' => Ok(value * 8 + i128::from(digit - b'0')),
                _ => Err("is not octal".to_owned()),
            })
        }
    }
}

/// Whether Go's reader takes a field for a number: one that starts with NUL counts as none at all.
fn is_go_number(field: &[u8]) -> bool {
    match field.first() {
        None | Some(0) => true,
        Some(first) if first & 0x80 != 0 => number(field).is_ok_and(|value| i64::try_from(value).is_ok()),
        Some(_) => {
            // Trimmed on both sides, and cut at the first NUL.
            let blank = |byte: &u8| matches!(byte, b' ' | 0);
            let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
            let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
            let digits = text(&field[start..end]);
            // Twelve octal digits always fit.
            digits.iter().all(|digit| matches!(digit, b'0'..=b'7'))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"    644 ", Ok(0o644)),
            (b"644 \0\0\0\0", Ok(0o644)),
            (b"\0\0\0\0", Ok(0)),
            (b"        ", Ok(0)),
            (b"77777777", Ok(0o77777777)),
            (b"\x80\0\0\0\0\0\x01\0", Ok(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xfe", Ok(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i128::from(i64::MAX))),
            (b"12x", Err(())),
            (b"8", Err(())),
            (b"-1", Err(())),
            (b"1 1", Err(())),
            (b"0x10", Err(())),
        ] {
            assert_eq!(number(field).map_err(drop), value, "{field:?}");
        }
    }
}
