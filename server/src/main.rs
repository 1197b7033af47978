//! `k3s`: `server`, `agent`, and the shim that a pod's processes live under.

use std::process::ExitCode;

use anyhow::Context as _;
use server::config::{self, Command, ConfigError};
use server::store::OpenError;
use server::store::sql::sqlite;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// The datastore is damaged and cannot be repaired: to start again does not help (`EX_DATAERR` of sysexits.h;
/// `docs/backup.md`).
const DAMAGED: u8 = 65;

fn main() -> ExitCode {
    // A shim lives as long as its pod and must stay small: no runtime, no parsing, nothing before this.
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == "shim") {
        agent::runtime::shim::main(args.collect());
    }
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn start() -> anyhow::Result<()> {
    match config::parse(std::env::args_os(), &config::surroundings())? {
        Command::Print(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Admin(admin) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("cannot start a runtime")?;
            print!("{}", runtime.block_on(server::command::run(*admin))?);
            Ok(())
        }
        Command::Server(config) => {
            log(config.debug);
            until_stopped(|stop| server::run::run(*config, stop))
        }
        Command::Agent(config) => {
            log(config.debug);
            until_stopped(|stop| agent::run::run(*config, stop))
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        // clap colours, prints help to stdout, and knows its codes.
        Some(ConfigError::Usage(usage) | ConfigError::Agent(agent::config::ConfigError::Usage(usage))) => usage.exit(),
        _ => eprintln!("k3s: {error:#}"),
    }
    match error.downcast_ref() {
        Some(OpenError::Sqlite(sqlite::OpenError::Damaged { .. })) => ExitCode::from(DAMAGED),
        _ => ExitCode::FAILURE,
    }
}

fn log(debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        .init();
}

/// Runs until SIGTERM or SIGINT; a second one ends the process at once.
fn until_stopped<F, R>(run: F) -> anyhow::Result<()>
where
    F: FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = run(Box::pin(async { drop(stopped.await) }));
        tokio::pin!(running);
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                outcome = &mut running => return outcome,
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.take().is_none() {
                std::process::exit(1);
            }
        }
    })
}
