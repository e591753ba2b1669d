//! One connection: reads requests, has them carried out, sends the replies, in turns.
//!
//! Nothing is read while there is something to be sent, and nothing more is answered than
//! [`Output`] takes: a client that does not read makes its own requests wait and nothing grow. After
//! [`TURN_REQUESTS`] requests the others get their turn. Buffers are given back while nothing
//! happens.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Shared;
use super::connections::{Registered, State};
use super::execute::afar::Afar;
use super::execute::{self, Keys, Next};
use super::input::Input;
use super::output::{Output, SLICES};
use super::slow::Slow;
use super::stream::Stream;
use super::transfer::Transfer;
use crate::node::cache::Now;
use crate::protocol::{Decoder, Refusal, Step, Violation, reply};

/// Requests of one connection before others get their turn.
const TURN_REQUESTS: usize = 64;

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// By the client, or by `quit`.
    Closed,
    /// By the server: idle or stalled.
    Kicked,
    /// By the server, which ends: between two requests.
    SentAway,
    /// For what was sent.
    Violation(Violation),
    /// No memory for a long line.
    OutOfMemory,
    /// By an error.
    Error(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

/// What a turn of work ended with.
enum Turn {
    /// More input is needed.
    Read,
    /// The output must be sent first, or others be let on.
    Again { is_long: bool },
    /// The output must be sent first, and then what the device's thread answers.
    Afar(Afar),
    /// The memory must be handed over.
    Share,
    /// The output must be sent first, and then what this gives.
    Slow(Slow),
    /// The connection ends when the output is sent.
    Close(End),
}

struct Session {
    stream: Stream,
    shared: Arc<Shared>,
    registered: Registered,
    decoder: Decoder,
    input: Input,
    output: Output,
    transfer: Option<Box<Transfer>>,
    keys: Option<Keys>,
    /// When the request began of which a part has come.
    since: Option<Duration>,
    /// The node ends: the request of which a part has come is the last one.
    is_last: bool,
}

/// Serves a connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, stream: Stream, registered: Registered) {
    let mut session = Session {
        stream,
        shared,
        registered,
        decoder: Decoder::default(),
        input: Input::default(),
        output: Output::default(),
        transfer: None,
        keys: None,
        since: None,
        is_last: false,
    };
    let end = match session.run().await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    let Session { shared, stream, registered, .. } = &mut session;
    let connection = &registered.connection;
    let id = u64::from(connection.id.unsigned_abs());
    if let Some(rdma) = &shared.rdma {
        rdma.close(id);
    }
    if let Ok(push) = &shared.push {
        push.close(id);
    }
    let is_sent_away = matches!(end, End::SentAway);
    match end {
        End::Violation(violation) => {
            shared.counters.violations.add_one();
            shared.log.warn(|| format!("{}: closed: {violation}", connection.peer));
        }
        End::OutOfMemory => {
            shared.counters.input_out_of_memory.add_one();
            shared.log.warn(|| format!("{}: closed: no memory for long lines", connection.peer));
        }
        End::Kicked => tracing::debug!("{}: closed: idle or stalled", connection.peer),
        End::SentAway => tracing::debug!("{}: closed: draining", connection.peer),
        End::Error(error) => tracing::debug!("{}: {error}", connection.peer),
        End::Closed => tracing::debug!("{}: closed by the client", connection.peer),
    }
    // Tells TLS clients that nothing was cut off; whoever does not listen is not waited for.
    let shutdown = pin!(stream.shutdown());
    let _ = tokio::time::timeout(super::GOODBYE, shutdown).await;
    if is_sent_away {
        connection.set_state(State::Read);
        // Apart, so that other connections do not carry it along.
        let _ = tokio::time::timeout(super::GOODBYE, Box::pin(hear_out(stream))).await;
    }
}

/// Reads what a client still sends, until it has seen that this is the end: closing before would
/// take back what it has not read yet.
async fn hear_out(stream: &mut Stream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

impl Session {
    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        loop {
            let now = Now::system();
            self.registered.connection.set_state(State::Parse);
            let is_ending = self.shared.is_ending();
            let turn = self.work(now);
            self.send().await?;
            match turn {
                Turn::Read if is_ending && self.has_nothing() => return Err(End::SentAway),
                Turn::Again { .. } if self.is_last && self.is_between_requests() => {
                    return Err(End::SentAway);
                }
                Turn::Read => {
                    self.is_last |= is_ending;
                    self.receive().await?;
                }
                Turn::Again { is_long: false } => {}
                Turn::Again { is_long: true } => {
                    self.shared.counters.yields.add_one();
                    tokio::task::yield_now().await;
                }
                Turn::Afar(afar) => {
                    let id = u64::from(self.registered.connection.id.unsigned_abs());
                    // Apart, so that other connections do not carry it along.
                    Box::pin(afar.ask(&self.shared, id, &mut self.output)).await?;
                }
                Turn::Share => self.share().await?,
                Turn::Slow(slow) => {
                    // Apart, so that other connections do not carry it along.
                    self.output = Box::pin(slow.run(self.shared.clone())).await?;
                }
                Turn::Close(end) => return Err(end),
            }
        }
    }

    /// Hands over the memory; everything before has been sent.
    async fn share(&mut self) -> Result<(), End> {
        let announcement = self.shared.cache.announcement();
        let refusal = match self.shared.cache.arena().share() {
            Ok(memory) if self.stream.is_unix() => {
                let line = format!("SHARE {announcement}\r\n");
                return self
                    .stream
                    .send_with_file(line.as_bytes(), memory.as_fd())
                    .await
                    .map_err(End::Error);
            }
            Ok(_) => "memory is handed over by a unix socket only".to_owned(),
            Err(error) => format!("the memory cannot be handed over: {error}"),
        };
        self.shared.counters.server_errors.add_one();
        self.output.text().extend(format!("SERVER_ERROR {refusal}\r\n").bytes());
        Ok(())
    }

    /// Whether all that came so far is whole requests, which were carried out.
    fn is_between_requests(&self) -> bool {
        self.transfer.is_none() && self.keys.is_none() && self.decoder.is_between_commands()
    }

    /// The same, and nothing more came.
    fn has_nothing(&self) -> bool {
        self.is_between_requests() && self.input.bytes().is_empty()
    }

    /// Carries out what came, up to a bound.
    fn work(&mut self, now: Now) -> Turn {
        let requests = if self.is_last { 1 } else { TURN_REQUESTS };
        let Self { shared, decoder, input, output, transfer, keys, registered, since, .. } = self;
        for _ in 0..requests {
            if output.is_full() {
                return Turn::Again { is_long: false };
            }
            if let Some(pending) = transfer {
                let taken = pending.fill(input.bytes());
                input.consume(taken);
                let Some(end) = input.bytes().first_chunk::<2>() else { return Turn::Read };
                if !pending.is_filled() {
                    return Turn::Read;
                }
                let is_sound = end == reply::END_OF_LINE;
                if !is_sound && end[1] != b'\n' {
                    decoder.skip_line();
                }
                input.consume(2);
                *since = None;
                if let Some(pending) = transfer.take() {
                    let peer = &registered.connection.peer;
                    match execute::finish(shared, *pending, is_sound, peer, output, now) {
                        Next::Slow(slow) => return Turn::Slow(slow),
                        Next::Afar(afar) => return Turn::Afar(afar),
                        _ => (),
                    }
                }
                continue;
            }
            if let Some(pending) = keys {
                // One key counts like one request, and stays in the input until its turn.
                let line = input.bytes().get(..pending.bytes).unwrap_or_default();
                let (key, length) = first_key(line);
                if key.is_empty() {
                    execute::end_get(output);
                    *keys = None;
                    decoder.skip_line();
                } else {
                    execute::get(shared, pending, key, output, now);
                    pending.bytes -= length;
                }
                input.consume(length);
                continue;
            }
            let (consumed, next) = match decoder.step(input.bytes()) {
                Step::More => return Turn::Read,
                Step::Skip(length) => (length, Next::Done),
                Step::Command(length, command) => {
                    registered.connection.command(now.monotonic);
                    match execute::execute(shared, &command, output, now) {
                        Next::Get(begun) => {
                            let line = input.bytes().get(..length).unwrap_or_default();
                            *keys = Some(begun);
                            (line_without_end(line) - begun.bytes, Next::Done)
                        }
                        next => (length, next),
                    }
                }
                Step::Refused(length, refused) => {
                    registered.connection.command(now.monotonic);
                    execute::refuse(shared, refused, output);
                    (length, Next::Done)
                }
                Step::Close(violation) => {
                    if violation == Violation::LineTooLong {
                        execute::refuse(shared, Refusal::LineTooLong.into(), output);
                    }
                    return Turn::Close(End::Violation(violation));
                }
            };
            input.consume(consumed);
            *since = None;
            match next {
                Next::Done | Next::Get(_) => {}
                Next::Receive(begun) => *transfer = Some(begun),
                Next::Skip(length) => decoder.skip_data(length),
                Next::Afar(afar) => return Turn::Afar(afar),
                Next::Share => return Turn::Share,
                Next::Slow(slow) => return Turn::Slow(slow),
                Next::Close => return Turn::Close(End::Closed),
            }
        }
        Turn::Again { is_long: true }
    }

    /// Sends all output.
    async fn send(&mut self) -> Result<(), End> {
        let Self { stream, shared, registered, output, .. } = self;
        if output.is_empty() {
            return Ok(());
        }
        let connection = &registered.connection;
        connection.begin(State::Write, Now::system().monotonic, output.length());
        while !output.is_empty() {
            // The slices are made anew each time: kept, they would be part of every connection.
            let write = poll_fn(|context| {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = output.slices(&mut slices);
                let slices = slices.get(..count).unwrap_or_default();
                Pin::new(&mut *stream).poll_write_vectored(context, slices)
            });
            let sent = tokio::select! {
                biased;
                sent = write => sent?,
                () = connection.kicked() => return Err(End::Kicked),
            };
            if sent == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            output.advance(sent);
            shared.counters.bytes_written.add(sent as u64);
            connection.progress(Now::system().monotonic);
        }
        tokio::select! {
            biased;
            flushed = stream.flush() => flushed?,
            () = connection.kicked() => return Err(End::Kicked),
        }
        Ok(())
    }

    /// Receives something, and gives buffers back while there is nothing.
    async fn receive(&mut self) -> Result<(), End> {
        loop {
            let Self {
                stream, shared, registered, decoder, input, output, transfer, since, ..
            } = self;
            let connection = &registered.connection;
            let slot = transfer.as_mut().filter(|pending| !pending.is_filled());
            let received = if let Some(pending) = slot {
                let received = once(stream.read(pending.unfilled())).await;
                if let Some(Ok(length)) = received {
                    pending.advance(length);
                }
                received
            } else {
                let room = input.room(&shared.input_budget).ok_or(End::OutOfMemory)?;
                once(stream.read_buf(room)).await
            };
            if let Some(received) = received {
                let length = received?;
                if length == 0 {
                    return Err(End::Closed);
                }
                shared.counters.bytes_read.add(length as u64);
                connection.progress(Now::system().monotonic);
                return Ok(());
            }
            let (state, bytes) = if let Some(pending) = transfer {
                (State::Nread, pending.length())
            } else if !decoder.is_between_commands() {
                (State::Swallow, 0)
            } else if input.bytes().is_empty() {
                (State::Read, 0)
            } else {
                (State::Waiting, input.bytes().len())
            };
            let now = Now::system().monotonic;
            connection.begin(state, *since.get_or_insert(now), bytes);
            if state == State::Read {
                *since = None;
            }
            input.release();
            output.release();
            tokio::select! {
                biased;
                ready = stream.readable() => ready?,
                () = connection.kicked() => return Err(End::Kicked),
                () = connection.sent_away(), if state == State::Read => return Err(End::SentAway),
            }
        }
    }
}

/// The first word of `line`, and the bytes up to its end.
fn first_key(line: &[u8]) -> (&[u8], usize) {
    let start = line.iter().position(|&byte| byte != b' ').unwrap_or(line.len());
    let behind = line.get(start..).unwrap_or_default();
    let length = behind.iter().position(|&byte| byte == b' ').unwrap_or(behind.len());
    (behind.get(..length).unwrap_or_default(), start + length)
}

/// Bytes of `line` without its end.
fn line_without_end(line: &[u8]) -> usize {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line).len()
}

/// Looks at `future` once: `None` if it would have to wait.
async fn once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(move |context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}
