//! SHA-256 as layers and blobs are verified with it: in pieces of 256 KiB. The floor is one call over the same bytes; the
//! last line computes it without the CPU's own instructions, to show that they are used.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::time::Duration;

use coracle::Digest;
use coracle::name::{Algorithm, Hasher};
use sha2::Digest as _;
use support::{Candidate, compare, fact, is_trial};

fn main() {
    let size = if is_trial() { 1 << 20 } else { 64 << 20 };
    let mut numbers = support::layers::Numbers(3);
    let bytes: Vec<u8> = (0..size / 8).flat_map(|_| numbers.next().to_le_bytes()).collect();
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("sha");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("sha2");
    fact(&format!("this CPU has {} instructions for SHA-256", if has { "its own" } else { "no" }));
    let whole = in_pieces(&bytes);
    assert_eq!(portable(&bytes), whole.hex());
    let times = compare(
        &format!("SHA-256 of {} MiB", size >> 20),
        15,
        Duration::ZERO,
        vec![
            Candidate {
                name: "floor: sha2, one call",
                turn: Box::new(|| {
                    std::hint::black_box(sha2::Sha256::digest(&bytes));
                }),
            },
            Candidate { name: "coracle", turn: Box::new(|| drop(std::hint::black_box(in_pieces(&bytes)))) },
            Candidate {
                name: "without the CPU's instructions",
                turn: Box::new(|| drop(std::hint::black_box(portable(&bytes)))),
            },
        ],
    );
    let rate = |at: usize| size as f64 / 1e6 / times[at].median().as_secs_f64();
    fact(&format!("coracle: {:.0} MB/s, {:.1} times as fast as without", rate(1), rate(1) / rate(2)));
}

fn in_pieces(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    bytes.chunks(256 << 10).for_each(|piece| hasher.update(piece));
    hasher.finish()
}

/// FIPS 180-4, as it stands there.
fn portable(bytes: &[u8]) -> String {
    let primes = || (2u64..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    // The first 32 bits of the fractional part of a root.
    let root = |n: u64, power: f64| ((n as f64).powf(power).fract() * 4_294_967_296.0) as u32;
    let mut state: Vec<u32> = primes().take(8).map(|prime| root(prime, 0.5)).collect();
    let constants: Vec<u32> =
        primes().take(64).map(|prime| (f64::cbrt(prime as f64).fract() * 4_294_967_296.0) as u32).collect();
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((bytes.len() as u64 * 8).to_be_bytes());
    for block in padded.as_chunks::<64>().0 {
        let mut words = [0u32; 64];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        for at in 16..64 {
            let (a, b) = (words[at - 15], words[at - 2]);
            let small0 = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let small1 = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
            words[at] = words[at - 16].wrapping_add(small0).wrapping_add(words[at - 7]).wrapping_add(small1);
        }
        let mut v: [u32; 8] = state[..].try_into().unwrap();
        for at in 0..64 {
            let large1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = v[4] & v[5] ^ !v[4] & v[6];
            let first =
                v[7].wrapping_add(large1).wrapping_add(choice).wrapping_add(constants[at]).wrapping_add(words[at]);
            let large0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2];
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(first);
            v[0] = first.wrapping_add(large0.wrapping_add(majority));
        }
        for (state, v) in state.iter_mut().zip(v) {
            *state = state.wrapping_add(v);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}
