//! Makes archives of arbitrary bytes that are worth reading.

/// The bytes as a tar whose headers have right checksums and sizes that stay inside of the input, or nearly every input
/// would end at its first header. `bend` changes a header before.
pub fn honest(bytes: &[u8], mut bend: impl FnMut(&mut [u8])) -> Vec<u8> {
    let mut tar = bytes[..bytes.len() / 512 * 512].to_vec();
    let mut at = 0;
    while at + 512 <= tar.len() {
        let left = tar.len() - at - 512;
        let header = &mut tar[at..at + 512];
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        bend(header);
        let mut size = 0;
        if matches!(header[156], 0 | b'0' | b'7' | b'x' | b'g' | b'L' | b'K' | b'S') {
            let digits = header[124..135].iter().take_while(|byte| matches!(byte, b'0'..=b'7'));
            size = digits.fold(0, |size: usize, digit| size.wrapping_mul(8).wrapping_add(usize::from(digit - b'0')));
            size = size.min(left);
            header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        at += 512 + size.div_ceil(512) * 512;
    }
    tar.extend([0; 1024]);
    tar
}
