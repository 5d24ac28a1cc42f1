//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use coracle::Platform;
use coracle::container::Signal;

/// Images and containers without a daemon.
#[derive(Parser)]
#[command(name = "coracle", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Where images and containers are kept [default: /var/lib/coracle as root, else $XDG_DATA_HOME/coracle]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// How containers are isolated: the strongest way that works and is strong enough, or this one
    #[arg(
        long,
        value_name = "auto|namespaces|landlock|chroot",
        default_value = "auto",
        hide_default_value = true,
        global = true
    )]
    pub isolation: Isolation,
    /// Answers and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Is there a command of this name?
    pub fn knows(name: &str) -> bool {
        Cli::command().find_subcommand(name).is_some()
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Load images from an archive (docker save, podman, skopeo, umoci) or an OCI image layout
    ///
    /// All or nothing. What an interrupted load has taken in is no image, and the next command removes it.
    Load(Load),
    /// Make an image of one layer from a root file system, a tar or a directory
    Import(Import),
    /// List images
    Images(Images),
    /// Give an image one more name
    Tag(Tag),
    /// Remove images, or names of them
    Rmi(Rmi),
    /// Show how an image was made, latest step first
    History(History),
    /// Show everything about images and containers, as JSON
    Inspect(Inspect),
    /// Run a command in a new container
    ///
    /// Signals go to the command. One that hears no SIGINT is killed by the third ^C within a few seconds.
    Run(Box<Run>),
    /// Run a further command in a container that runs
    Exec(Exec),
    /// Make an image of what a container has changed
    Commit(Commit),
    /// List what a container has changed: A added, C changed, D deleted
    Diff(Diff),
    /// List containers
    Ps(Ps),
    /// Wait until containers end, and print their exit statuses
    Wait(Names),
    /// Send a signal to containers, KILL unless told otherwise
    Kill(Kill),
    /// Ask containers to stop, and kill those that do not
    Stop(Stop),
    /// Remove containers
    Rm(Rm),
    /// Look after the root as a whole: is it in order, what takes the space, what can go
    #[command(subcommand, arg_required_else_help = true)]
    System(System),
    /// Save what stopped containers have written, so that others can be started on it
    Snapshot(Snapshot),
    /// List saved snapshots
    Snapshots(Snapshots),
    /// Say what this host can do, what it cannot, and what would change that
    Doctor,
    /// Show the version
    Version,
}

#[derive(Args)]
pub struct Load {
    /// The archive or layout directory; standard input when there is none, or when it is -
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The same, as docker has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub input: Option<PathBuf>,
    /// Choose this platform (os/arch[/variant]) from multi-platform images
    #[arg(long)]
    pub platform: Option<Platform>,
}

#[derive(Args)]
pub struct Import {
    /// A tar (plain, gzip or zstd), a directory, or - for a tar on standard input
    #[arg(value_name = "FILE|DIR|-")]
    pub source: PathBuf,
    /// Its name, such as mine:latest
    pub reference: Option<String>,
    /// A Dockerfile instruction: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// A remark for the history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub message: String,
    /// The platform that it is for (os/arch[/variant])
    #[arg(long)]
    pub platform: Option<Platform>,
    /// Give all files of a directory to this owner, such as 0:0; those of a tar are whose it says
    #[arg(long, value_name = "UID:GID")]
    pub owner: Option<String>,
    /// Compress the layer of a directory; a tar is taken as it is
    #[arg(long, value_name = "FORMAT")]
    pub compression: Option<LayerCompression>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    Auto,
    Namespaces,
    Landlock,
    Chroot,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayerCompression {
    None,
    Gzip,
    Zstd,
}

#[derive(Args)]
#[command(after_help = "SOURCE_DATE_EPOCH (seconds since 1970) is the time of the image, and of files that are newer.")]
pub struct Commit {
    /// A name, an ID, or the beginning of an ID
    pub container: String,
    /// The image's name, such as mine:latest
    pub reference: Option<String>,
    /// Who made it
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub author: String,
    /// A Dockerfile instruction: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// A remark for the history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub message: String,
    /// Refuse a container that runs, in place of freezing it
    #[arg(long)]
    pub no_pause: bool,
    /// How the layer is compressed [default: gzip]
    #[arg(long, value_name = "FORMAT")]
    pub compression: Option<LayerCompression>,
    /// How hard: 0 to 9 for gzip, 1 to 22 for zstd
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<u32>,
}

#[derive(Args)]
pub struct Diff {
    /// A name, an ID, or the beginning of an ID
    pub container: String,
}

#[derive(Args)]
pub struct Images {
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Accepted for docker's sake: nameless images are listed anyway
    #[arg(short = 'a', long = "all")]
    pub _all: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Args)]
pub struct Tag {
    /// A name, an ID, or the beginning of an ID
    pub source: String,
    /// The new name
    pub target: String,
}

#[derive(Args)]
pub struct Rmi {
    /// Remove an image with several names, and the last name of an image that containers use
    #[arg(short, long)]
    pub force: bool,
    /// Names, IDs, or beginnings of IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

#[derive(Args)]
pub struct History {
    /// A name, an ID, or the beginning of an ID
    pub image: String,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
    /// Print the IDs of the layers only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Type {
    Image,
    Container,
}

#[derive(Args)]
pub struct Inspect {
    /// Look among these only; otherwise among containers first, then images
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    pub kind: Option<Type>,
    /// Names, IDs, or beginnings of IDs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Args)]
#[command(override_usage = "coracle run [OPTIONS] IMAGE [COMMAND...]\n       \
                            coracle run [OPTIONS] --rootfs DIR -- COMMAND...\n       \
                            coracle run [OPTIONS] --snapshot ID [COMMAND...]")]
pub struct Run {
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Set a variable; NAME alone takes the value from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables of a file, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Show a file or directory of the host inside
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro,...]")]
    pub volume: Vec<String>,
    /// The same, or a tmpfs, in words: type=bind|tmpfs,source=...,target=...,readonly
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub mount: Vec<String>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Make the container's own tree read-only
    #[arg(long)]
    pub read_only: bool,
    /// Of its tree only this, what else is named so, and what is mounted can be read
    #[arg(long, value_name = "PATH")]
    pub readable: Vec<PathBuf>,
    /// What it can reach
    #[arg(long, value_name = "none|host", default_value = "none")]
    pub network: Network,
    /// Replace the image's entrypoint; empty takes it away
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// The host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give a capability, or ALL, which counts more than --cap-drop ALL, as with docker
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// As root: a user namespace whose ids are so many of the host, from FIRST on; files are shown so, never changed
    #[arg(long, value_name = "FIRST:SIZE")]
    pub userns: Option<String>,
    /// Put a small init in front of the command, which reaps orphans and forwards signals
    #[arg(long)]
    pub init: bool,
    /// Name the container
    #[arg(long)]
    pub name: Option<String>,
    /// The signal that `coracle stop` sends first
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,
    /// no-new-privileges[=false], seccomp=unconfined|builtin|strict|FILE (the last counts), systempaths=unconfined,
    /// landlock[=false], untrusted
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Run over a directory of the host, which stays as it is, in place of an image
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,
    /// Start on a saved snapshot, in place of an image
    #[arg(long, value_name = "ID", conflicts_with = "rootfs")]
    pub snapshot: Option<String>,
    /// The least isolation to accept: ASPECT=full|partial|none, or nothing; see `coracle doctor`
    #[arg(long, value_name = "REQUIREMENT")]
    pub require: Vec<String>,
    /// Give the command a terminal of its own; with -i, what is typed goes there
    #[arg(short, long)]
    pub tty: bool,
    // Habits of docker's users get a better answer than "unexpected argument".
    #[arg(short, long, hide = true)]
    pub detach: bool,
    /// The image (none with --rootfs and --snapshot), the command and its arguments
    #[arg(trailing_var_arg = true, required_unless_present_any = ["rootfs", "snapshot"], value_name = "IMAGE")]
    pub words: Vec<String>,
}

#[derive(Args)]
pub struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Set a variable; NAME alone takes the value from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables of a file, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Start in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Give the command a terminal of its own; with -i, what is typed goes there
    #[arg(short, long)]
    pub tty: bool,
    #[arg(short, long, hide = true)]
    pub detach: bool,
    /// The container, the command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CONTAINER")]
    pub words: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    None,
    Host,
}

#[derive(Args)]
pub struct Ps {
    /// Those that have ended as well
    #[arg(short, long)]
    pub all: bool,
    /// What each has written takes on the disk; with snapshot backends that give it a whole tree, that tree
    #[arg(short, long)]
    pub size: bool,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Snapshot {
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
    /// Names, IDs, or beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// List saved snapshots
    Ls(Snapshots),
    /// Remove saved snapshots that no container stands on
    Rm(SnapshotIds),
}

#[derive(Args)]
pub struct SnapshotIds {
    /// IDs, or beginnings of IDs
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub names: Vec<String>,
}

#[derive(Args)]
pub struct Snapshots {
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Args)]
pub struct Names {
    /// Names, IDs, or beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

#[derive(Args)]
pub struct Kill {
    /// By name or number
    #[arg(short, long, default_value = "KILL")]
    pub signal: Signal,
    #[command(flatten)]
    pub containers: Names,
}

#[derive(Args)]
pub struct Stop {
    /// How many seconds to wait before killing
    #[arg(short = 't', long, visible_alias = "timeout", value_name = "SECONDS", default_value_t = 10, value_parser = seconds)]
    pub time: u64,
    #[command(flatten)]
    pub containers: Names,
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "expected a whole number of seconds")
}

#[derive(Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub containers: Names,
}

#[derive(Subcommand)]
pub enum System {
    /// Look whether everything is whole; exits with 1 when something is damaged or could not be looked at
    ///
    /// It mends nothing, and says what would. Like every command it first clears away what killed programs left.
    Check(Check),
    /// Show what takes the space, to the byte
    Df(Df),
    /// Remove what nobody needs: garbage of killed programs, nameless images without containers, layers without images
    Prune(Prune),
}

#[derive(Args)]
pub struct Check {
    /// Compare the sizes of layers' blobs, and read neither these nor unpacked layers
    #[arg(long)]
    pub quick: bool,
    /// Read and verify every byte of blobs and of unpacked layers; so it is unless told otherwise
    #[arg(long = "full", conflicts_with = "quick")]
    pub _full: bool,
}

#[derive(Args)]
pub struct Df {
    /// One by one
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Args)]
pub struct Prune {
    /// Images with names as well, where no container uses them
    #[arg(short, long)]
    pub all: bool,
    /// Containers that have ended as well, with all that they wrote
    #[arg(long)]
    pub containers: bool,
    /// Only say what would go
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Accepted for docker's sake: nothing is asked
    #[arg(short = 'f', long = "force", hide = true)]
    pub _force: bool,
}
