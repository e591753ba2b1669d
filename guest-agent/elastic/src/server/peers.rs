//! The connections on which a server speaks to its peers.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Weak;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::{PATIENCE, Shared, TICK, live};
use crate::Peer;
use crate::journal::write_pieces;
use crate::node::Message;
use crate::wire::{Encoded, Frame};

/// Sends messages to a peer, over a connection that is made again when it breaks.
pub(super) fn talk(shared: &Weak<Shared>, to: Peer, messages: &Receiver<Message>) {
    let mut stream: Option<TcpStream> = None;
    let mut tried: Option<Instant> = None;
    while let Ok(message) = messages.recv() {
        let Some(shared) = live(shared) else { return };
        if stream.is_none() && tried.is_none_or(|tried| tried.elapsed() >= TICK) {
            tried = Some(Instant::now());
            stream = connect(&shared, to)
                .inspect_err(|error| log::debug!("no connection to {to}: {error}"))
                .ok();
        }
        // What cannot be sent is lost, and repeated by the protocol.
        let frame = Frame::Peer(message);
        if let Some(open) = &mut stream
            && write_pieces(open, Encoded::new(&frame).pieces()).is_err()
        {
            stream = None;
            // The peer may have started again since.
            if let Ok(mut new) = connect(&shared, to)
                && write_pieces(&mut new, Encoded::new(&frame).pieces()).is_ok()
            {
                stream = Some(new);
            }
        }
    }
}

fn connect(shared: &Shared, to: Peer) -> io::Result<TcpStream> {
    let address = shared.routes.address(to).and_then(|address| address.parse().ok());
    let address: SocketAddr = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let hello = Frame::Hello { peer: Some(shared.config.me), secret: shared.config.secret };
    write_pieces(&mut stream, Encoded::new(&hello).pieces())?;
    stream.flush()?;
    Ok(stream)
}
