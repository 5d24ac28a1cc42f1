//! Bench.
use coracle::content::{Durability, Store};
use coracle::layer::{LayerOptions, LayerStore};
use coracle::name::{Algorithm, DiffId, Digest, Hasher};
use std::io::{Read, Write};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (tar, gz, root) = (&args[1], &args[2], &args[3]);
    let n: usize = args.get(4).map_or(5, |n| n.parse().unwrap());
    let store = Store::open_with(root.as_ref(), Durability::Relaxed).unwrap();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut f = std::fs::File::open(tar).unwrap();
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = f.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
    }
    let diff = DiffId(hasher.finish());
    let mut ingest = store.ingest(None, None).unwrap();
    ingest.write_all(&std::fs::read(gz).unwrap()).unwrap();
    let blob: Digest = ingest.commit().unwrap();
    let layers = LayerStore::open(&store, LayerOptions::default()).unwrap();
    for _ in 0..n {
        let start = Instant::now();
        let layer = layers.ensure(&blob, &diff, &[]).unwrap();
        let t = start.elapsed();
        println!("unpack {:?} entries {} bytes {} skipped {:?}", t, layer.entries(), layer.bytes(), layer.skipped());
        if std::env::var_os("KEEP").is_some() {
            println!("{}", layer.tree().display());
            return;
        }
        layers.remove(&layer).unwrap();
    }
}
