//! Loads an image and runs a command in it: `run_image ARCHIVE COMMAND…`. The archive is what `docker save`, `skopeo` or
//! `umoci` write, or an OCI image layout as a directory.

use std::process::ExitCode;

use coracle::Stdio;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("run_image: {error}");
            ExitCode::from(125)
        }
    }
}

fn run() -> coracle::Result<u8> {
    let mut arguments = std::env::args().skip(1);
    let Some(archive) = arguments.next() else {
        eprintln!("usage: run_image ARCHIVE COMMAND…");
        return Ok(2);
    };
    let engine = coracle::Engine::open_default()?;
    let image = engine.load(archive.as_str())?;
    eprintln!("{} for {}", image.id(), image.platform());
    let mut container = image.container().stdin(Stdio::Inherit);
    let command: Vec<String> = arguments.collect();
    if !command.is_empty() {
        container = container.command(command);
    }
    let status = container.status()?;
    Ok(status.shell_code() as u8)
}
