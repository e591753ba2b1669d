//! How two servers know each other on a stream, and how messages are on it.
//!
//! Each begins with a greeting: the protocol's name and version, who it is, and a number that was never used. Of both
//! numbers and the secret that the servers share comes a key for each direction; each message carries its
//! length and a code of its number, itself and the key (BLAKE3's keyed hash). So nobody without the secret can say
//! anything, nor say again what was said. What they say is not hidden.

use serde::{Deserialize, Serialize};

use super::{Message, Node};

/// What a greeting begins with: the name and version of the protocol.
const MAGIC: &[u8; 8] = b"vmmdhcp1";
const NONCE_BYTES: usize = 32;
/// Bytes of a greeting: name, who, number.
const HELLO_BYTES: usize = 8 + 8 + NONCE_BYTES;
const LENGTH_BYTES: usize = 4;
const CODE_BYTES: usize = 32;
/// The longest message, in bytes: all of the largest table.
const MOST_BYTES: usize = 64 << 20;
/// The longest before the other has shown that it knows the secret.
const MOST_FIRST_BYTES: usize = 1024;

/// Why a stream is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Not this protocol, or another version.
    #[error("it speaks another protocol, or another version of this; run the same version on both")]
    Protocol,
    /// It is this server itself.
    #[error("it is this server itself; name others with --mirror, and give each its own --state")]
    Self_,
    /// It does not know the secret.
    #[error("it does not know the secret; give both the same --secret-file")]
    Secret,
    /// A message that is too long.
    #[error("a message of {0} bytes, more than there can be")]
    Long(usize),
    /// A message that is none.
    #[error("a message that cannot be read")]
    Form,
    /// It serves something else.
    #[error("its settings are others; give both the same ranges, options and lease time")]
    Settings,
    /// It belongs to other servers.
    #[error(
        "it belongs to another group of servers; a server that starts anew needs an empty --state"
    )]
    Group,
}

/// The secret that the servers share.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Of the bytes that somebody has chosen.
    pub fn new(bytes: &[u8]) -> Self {
        Self(blake3::derive_key("vmm dhcp 1: secret of the mirrors", bytes))
    }
}

/// What a server says of itself first, when it has shown that it knows the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intro {
    /// Its group; 0 if none.
    pub group: u64,
    /// What tells its settings from others.
    pub settings: [u8; 32],
}

/// What comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Said {
    Intro(Intro),
    Message(Message),
}

/// What is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The other is this server, and knows the secret.
    Peer(Node),
    /// It said this.
    Message(Message),
}

struct Keys {
    send: [u8; 32],
    receive: [u8; 32],
}

/// One end of a stream, without the stream.
pub struct Session {
    me: Node,
    nonce: [u8; NONCE_BYTES],
    dialled: bool,
    secret: Secret,
    intro: Intro,
    keys: Option<Keys>,
    peer: Node,
    introduced: bool,
    sent: u64,
    received: u64,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("introduced", &self.introduced)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// The end of server `me`, which has `dialled` or was; `nonce` is never used again.
    pub fn new(me: Node, dialled: bool, nonce: [u8; 32], secret: Secret, intro: Intro) -> Self {
        let mut outbox = MAGIC.to_vec();
        outbox.extend(me.to_le_bytes());
        outbox.extend(nonce);
        Self {
            me,
            nonce,
            dialled,
            secret,
            intro,
            keys: None,
            peer: 0,
            introduced: false,
            sent: 0,
            received: 0,
            inbox: Vec::new(),
            outbox,
        }
    }

    /// What is to be written to the stream; what was written is taken off its front.
    pub fn outbox(&mut self) -> &mut Vec<u8> {
        &mut self.outbox
    }

    /// Says `message`, to a server that is known.
    pub fn send(&mut self, message: Message) {
        if self.introduced {
            self.say(&Said::Message(message));
        }
    }

    fn say(&mut self, said: &Said) {
        let Some(keys) = &self.keys else { return };
        let body = postcard::to_stdvec(said).unwrap_or_default(); // there is room in memory: it cannot fail
        let Ok(length) = u32::try_from(body.len()) else { return };
        let code = code(&keys.send, self.sent, &body);
        self.sent += 1;
        self.outbox.extend(length.to_le_bytes());
        self.outbox.extend(&body);
        self.outbox.extend(code.as_bytes());
    }

    /// Bytes have come from the stream.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.inbox.extend(bytes);
    }

    /// What was heard, if all of it has come.
    ///
    /// # Errors
    /// The stream is to be given up.
    pub fn hear(&mut self) -> Result<Option<Heard>, SessionError> {
        if self.keys.is_none() && !self.greet()? {
            return Ok(None);
        }
        let Some(keys) = &self.keys else { return Ok(None) };
        let Some(length) = self.inbox.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let most = if self.introduced { MOST_BYTES } else { MOST_FIRST_BYTES };
        if length > most {
            return Err(SessionError::Long(length));
        }
        let end = LENGTH_BYTES + length;
        let Some(body) = self.inbox.get(LENGTH_BYTES..end) else { return Ok(None) };
        let Some(found) = self.inbox.get(end..).and_then(<[u8]>::first_chunk::<CODE_BYTES>) else {
            return Ok(None);
        };
        // The comparison takes as long for all.
        if code(&keys.receive, self.received, body) != blake3::Hash::from_bytes(*found) {
            return Err(SessionError::Secret);
        }
        self.received += 1;
        let (said, rest) = postcard::take_from_bytes(body).map_err(|_| SessionError::Form)?;
        if !rest.is_empty() {
            return Err(SessionError::Form);
        }
        self.inbox.drain(..end + CODE_BYTES);
        match said {
            Said::Intro(intro) if !self.introduced => {
                if intro.settings != self.intro.settings {
                    return Err(SessionError::Settings);
                }
                if intro.group != self.intro.group && intro.group != 0 && self.intro.group != 0 {
                    return Err(SessionError::Group);
                }
                self.introduced = true;
                Ok(Some(Heard::Peer(self.peer)))
            }
            Said::Message(message) if self.introduced => Ok(Some(Heard::Message(message))),
            _ => Err(SessionError::Form),
        }
    }

    /// Takes the other's greeting, if all of it has come.
    fn greet(&mut self) -> Result<bool, SessionError> {
        let known = self.inbox.len().min(MAGIC.len());
        if self.inbox.get(..known) != MAGIC.get(..known) {
            return Err(SessionError::Protocol);
        }
        let Some(hello) = self.inbox.first_chunk::<HELLO_BYTES>() else { return Ok(false) };
        let hello = *hello;
        self.inbox.drain(..HELLO_BYTES);
        let (name, nonce) = hello[MAGIC.len()..].split_at(8);
        self.peer = name.first_chunk().map_or(0, |name| u64::from_le_bytes(*name));
        if self.peer == self.me {
            return Err(SessionError::Self_);
        }
        let (mine, other) = (&self.nonce[..], nonce);
        let (me, peer) = (self.me.to_le_bytes(), self.peer.to_le_bytes());
        let parts =
            if self.dialled { [&me, mine, &peer, other] } else { [&peer, other, &me, mine] };
        let key = blake3::keyed_hash(&self.secret.0, &parts.concat());
        let of = |way: &[u8]| *blake3::keyed_hash(key.as_bytes(), way).as_bytes();
        let (there, back) = (of(b"to the one that was dialled"), of(b"to the one that dialled"));
        let (send, receive) = if self.dialled { (there, back) } else { (back, there) };
        self.keys = Some(Keys { send, receive });
        self.say(&Said::Intro(self.intro.clone()));
        Ok(true)
    }
}

fn code(key: &[u8; 32], number: u64, body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(me: Node, secret: &str, change: impl FnOnce(&mut Intro)) -> Session {
        let mut intro = Intro { group: 0, settings: [7; 32] };
        change(&mut intro);
        let nonce = [u8::try_from(me).unwrap(); 32];
        Session::new(me, me == 1, nonce, Secret::new(secret.as_bytes()), intro)
    }

    /// Carries all that one has to say to the other.
    fn carry(from: &mut Session, to: &mut Session) -> Result<Vec<Heard>, SessionError> {
        let bytes = std::mem::take(from.outbox());
        let mut heard = Vec::new();
        for piece in bytes.chunks(7) {
            to.receive(piece);
            while let Some(next) = to.hear()? {
                heard.push(next);
            }
        }
        Ok(heard)
    }

    fn pair() -> (Session, Session) {
        let (mut a, mut b) = (session(1, "secret", |_| {}), session(2, "secret", |_| {}));
        carry(&mut a, &mut b).unwrap();
        assert_eq!(carry(&mut b, &mut a).unwrap(), [Heard::Peer(2)]);
        assert_eq!(carry(&mut a, &mut b).unwrap(), [Heard::Peer(1)]);
        (a, b)
    }

    #[test]
    fn two_that_know_the_secret_hear_each_other() {
        let (mut a, mut b) = pair();
        a.send(Message::Beat { epoch: 1, sent: 2 });
        let heard = carry(&mut a, &mut b).unwrap();
        assert_eq!(heard, [Heard::Message(Message::Beat { epoch: 1, sent: 2 })]);
    }

    #[test]
    fn who_is_not_as_it_should_be_is_refused() {
        let refused = |mut b: Session| {
            let mut a = session(1, "secret", |intro| intro.group = 1);
            carry(&mut a, &mut b).and_then(|_| carry(&mut b, &mut a)).unwrap_err()
        };
        assert_eq!(refused(session(2, "other", |_| {})), SessionError::Secret);
        assert_eq!(refused(session(2, "secret", |i| i.settings = [0; 32])), SessionError::Settings);
        assert_eq!(refused(session(2, "secret", |i| i.group = 2)), SessionError::Group);
        assert_eq!(refused(session(1, "secret", |_| {})), SessionError::Self_);
        let mut a = session(1, "secret", |_| {});
        a.receive(b"GET / HTTP");
        assert_eq!(a.hear(), Err(SessionError::Protocol));
    }

    #[test]
    fn what_was_said_cannot_be_said_again() {
        let (mut a, mut b) = pair();
        a.send(Message::Beat { epoch: 1, sent: 2 });
        let bytes = a.outbox().clone();
        b.receive(&bytes);
        assert!(b.hear().unwrap().is_some());
        b.receive(&bytes);
        assert_eq!(b.hear(), Err(SessionError::Secret));
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), greeted in any::<bool>(),
        ) {
            let mut session = if greeted { pair().0 } else { session(1, "secret", |_| {}) };
            session.receive(&bytes);
            while let Ok(Some(heard)) = session.hear() {
                prop_assert!(false, "{heard:?} without the secret");
            }
        }

        #[test]
        fn any_body_is_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = postcard::from_bytes::<Said>(&bytes);
        }
    }
}
