//! `stat` and `fetch`: the data of images.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use guest_agent::calls::ImageStat;
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global, interrupt, print};

/// Show what an image has.
#[derive(Debug, Args)]
pub struct StatCommand {
    /// The image; this VM's own by default.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
}

impl StatCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let stat = options.driver()?.image_stat(self.image.as_deref())?;
        let text = format!(
            "{}: {} chunks of {} bytes, {} bytes in all, manifest {}\n",
            stat.image, stat.chunks, stat.chunk_bytes, stat.bytes, stat.manifest
        );
        options.print(&stat, &text)?;
        Ok(Exit::Success)
    }
}

/// Read chunks of an image.
#[derive(Debug, Args)]
pub struct FetchCommand {
    /// The image; this VM's own by default.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,

    /// Which chunk, from 0 on.
    #[arg(long, value_name = "N", required_unless_present = "all", conflicts_with = "all")]
    chunk: Option<u32>,

    /// All chunks, one behind the other.
    #[arg(long)]
    all: bool,

    /// Where to put the bytes; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    stat: ImageStat,
    chunks_fetched: u32,
    bytes_fetched: u64,
}

impl FetchCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        let image = self.image.as_deref();
        let stat = driver.image_stat(image)?;
        let chunks = match self.chunk {
            Some(chunk) => chunk..chunk.saturating_add(1),
            None => 0..stat.chunks,
        };
        let mut output: Option<File> = match &self.output {
            Some(path) => {
                let file = File::create(path);
                Some(file.map_err(|source| self.failed(source))?)
            }
            None => None,
        };
        let (mut chunks_fetched, mut bytes_fetched) = (0, 0);
        for chunk in chunks {
            interrupt::check()?;
            let bytes = driver.image_chunk(&stat, image, chunk)?;
            match &mut output {
                Some(file) => file.write_all(&bytes).map_err(|source| self.failed(source))?,
                None => print(&bytes)?,
            }
            chunks_fetched += 1;
            bytes_fetched += bytes.len() as u64;
        }
        if let Some(path) = &self.output {
            let text = format!(
                "{}: {bytes_fetched} bytes of {chunks_fetched} chunks in '{}'\n",
                stat.image,
                path.display()
            );
            options.print(&Report { stat, chunks_fetched, bytes_fetched }, &text)?;
        }
        Ok(Exit::Success)
    }

    fn failed(&self, source: io::Error) -> CliError {
        let path = self.output.clone().unwrap_or_default();
        CliError::File { what: format!("write '{}'", path.display()), source }
    }
}
