//! Files with holes: which pieces of the file the data in the archive are.

use super::BLOCK;
use super::header::{Header, Why, number};

/// Offset and length of each piece.
pub(super) type Pieces = Vec<(u64, u64)>;

/// A sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Its length with the holes.
    pub(crate) real_size: u64,
    /// Offset and length of each piece, ascending, not overlapping; their lengths add up to the entry's data.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks the map against the number of bytes that the archive holds for it.
    pub(super) fn new(real_size: u64, pieces: Pieces, stored: u64) -> Result<Sparse, Why> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, length) in &pieces {
            if *offset < end {
                return Err("the sparse map goes backwards".into());
            }
            end = offset.checked_add(*length).ok_or("the sparse map is out of range")?;
            // Cannot overflow: the pieces do not overlap.
            sum += length;
        }
        if end > real_size {
            return Err("the sparse map goes beyond the file's end".into());
        }
        if sum != stored {
            return Err("the sparse map and the stored size disagree".into());
        }
        Ok(Sparse { real_size, pieces })
    }
}

/// The pieces in `field`, of 24 bytes each; the first empty one ends the map.
pub(super) fn gnu_pieces(field: &[u8], pieces: &mut Pieces) -> Result<(), Why> {
    for piece in field.as_chunks::<24>().0 {
        if piece[0] == 0 {
            break;
        }
        let part = |field| {
            let value = number(field).map_err(|why| format!("sparse map {why}"))?;
            u64::try_from(value).map_err(|_| "sparse map is out of range".to_owned())
        };
        pieces.push((part(&piece[..12])?, part(&piece[12..])?));
    }
    Ok(())
}

/// The first part of an old GNU map, which stands in the header: pieces, whether more blocks follow, real size.
pub(super) fn gnu_header(header: &Header) -> Result<(Pieces, bool, u64), Why> {
    let mut pieces = Vec::new();
    gnu_pieces(&header.block[386..482], &mut pieces)?;
    let real_size = number(&header.block[483..495]).map_err(|why| format!("real size {why}"))?;
    let real_size = u64::try_from(real_size).map_err(|_| "real size is out of range".to_owned())?;
    Ok((pieces, header.block[482] != 0, real_size))
}

/// One further block of an old GNU map; returns whether another follows.
pub(super) fn gnu_extension(block: &[u8; BLOCK], pieces: &mut Pieces) -> Result<bool, Why> {
    gnu_pieces(&block[..504], pieces)?;
    Ok(block[504] != 0)
}

/// Reads the map of PAX sparse 1.0 from the start of the data: a count and the numbers, one a line.
pub(super) struct MapReader {
    wanted: Option<u64>,
    number: Option<u64>,
    offset: Option<u64>,
    pub(super) pieces: Pieces,
    /// Whether it failed for having more pieces than are allowed.
    pub(super) too_many: bool,
}

impl MapReader {
    pub(super) fn new() -> MapReader {
        MapReader { wanted: None, number: None, offset: None, pieces: Vec::new(), too_many: false }
    }

    /// Takes the next block; returns whether the map is complete. The rest of the last block is padding.
    pub(super) fn block(&mut self, block: &[u8; BLOCK], limit: usize) -> Result<bool, Why> {
        for byte in block {
            if self.is_complete() {
                return Ok(true);
            }
            match byte {
                b'0'..=b'9' => {
                    let value = self.number.unwrap_or(0).checked_mul(10);
                    let value = value.and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    self.number = Some(value.ok_or("the sparse map is out of range")?);
                }
                b'\n' => self.line(limit)?,
                _ => return Err("the sparse map is malformed".into()),
            }
        }
        Ok(self.is_complete())
    }

    fn line(&mut self, limit: usize) -> Result<(), Why> {
        let value = self.number.take().ok_or("the sparse map is malformed")?;
        match (self.wanted, self.offset.take()) {
            (None, _) if value > limit as u64 => {
                self.too_many = true;
                return Err("the sparse map has too many pieces".into());
            }
            (None, _) => self.wanted = Some(value),
            (Some(_), None) => self.offset = Some(value),
            (Some(_), Some(offset)) => self.pieces.push((offset, value)),
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.wanted == Some(self.pieces.len() as u64) && self.offset.is_none() && self.number.is_none()
    }
}
