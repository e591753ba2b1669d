//! `vmm top`: VMs, their boots and their memory, as they are.

mod frame;
mod sample;
mod screen;

use std::time::Duration;

use clap::{Args, ValueEnum};

use self::frame::{Column, View};
use self::sample::Sampler;
use super::reach::Reach;
use super::{CliError, print_text};
use crate::exit::Exit;

/// Watch the VMs of node agents: states, boots, memory and processors' time, and the pool of images.
///
/// Keys: n s i r m p c sort by name, state, image, time to ready, memory shared, memory of its own,
/// processors; the same key again turns the order round. Arrows move, q ends.
#[derive(Debug, Args)]
pub struct TopCommand {
    /// Print one frame as text, and end.
    #[arg(long)]
    once: bool,

    /// What VMs are sorted by at first.
    #[arg(long, value_enum, default_value_t = Column::Private)]
    sort: Column,

    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,

    /// Also VMs that have ended.
    #[arg(short, long)]
    all: bool,

    #[command(flatten)]
    reach: Reach,
}

impl TopCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let mut sampler = Sampler::new(self.reach.all()?, self.all);
        let view = View::new(self.sort);
        if self.once {
            let sample = sampler.look()?;
            print_text(&frame::text(&sample, &view))?;
            return Ok(Exit::Success);
        }
        screen::run(sampler, view, Duration::from_secs(self.interval))?;
        Ok(Exit::Success)
    }
}

/// The word for a column, as `--sort` takes it.
fn word(column: Column) -> String {
    column.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
