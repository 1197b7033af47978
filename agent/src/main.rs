//! `k3s-agent`.

use std::process::ExitCode;

use agent::config::{self, Config, ConfigError};
use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Files and name look-ups; the agent has no more at once.
const BLOCKING_THREADS: usize = 8;

fn main() -> ExitCode {
    // Before anything else: a shim must not carry what an agent sets up.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "shim") {
        agent::runtime::shim::main(words.collect());
    }
    let config = match config::parse(std::env::args_os(), &config::surroundings()) {
        Ok(config) => config,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => return fail(&error.into()),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(if config.debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        })
        .with_target(false)
        .init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("k3s-agent: {error:#}");
    ExitCode::FAILURE
}

/// Runs until SIGTERM or SIGINT; a second one ends the process at once.
fn run(config: Config) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let signals = async {
            either(&mut term, &mut interrupt).await;
            let _ = stop.send(());
            either(&mut term, &mut interrupt).await;
        };
        let running = agent::run::run(config, async {
            let _ = stopped.await;
        });
        tokio::select! {
            ended = running => ended,
            () = signals => anyhow::bail!("ended at once by a second signal"),
        }
    })
}

async fn either(term: &mut tokio::signal::unix::Signal, interrupt: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}
