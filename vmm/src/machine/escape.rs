//! The console's escape: how to get out of a guest that has all the keys.
//!
//! `Ctrl-A x` ends the VM, `Ctrl-A Ctrl-A` types one Ctrl-A, `Ctrl-A ?` tells so.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What the person at the console wants besides typing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// End the VM.
    Quit,
    /// See what the escape can do.
    Help,
}

/// What [`Wish::Help`] shows.
pub const HELP: &str =
    "\r\n[vmm: Ctrl-A x ends the VM, Ctrl-A Ctrl-A types Ctrl-A, Ctrl-A ? is this help]\r\n";

/// Takes the escape out of what is typed.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Appends to `output` what of `input` is for the guest; returns the last wish in it.
    pub fn filter(&mut self, input: &[u8], output: &mut Vec<u8>) -> Option<Wish> {
        let mut wish = None;
        for byte in input {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) | (true, byte @ ESCAPE) => output.push(byte),
                (true, b'x' | b'X') => return Some(Wish::Quit),
                (true, b'?' | b'h') => wish = Some(Wish::Help),
                (true, byte) => output.extend([ESCAPE, byte]),
            }
        }
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Option<Wish>) {
        let mut filter = EscapeFilter::default();
        let mut output = Vec::new();
        let wish = pieces.iter().fold(None, |_, piece| filter.filter(piece, &mut output));
        (output, wish)
    }

    #[test]
    fn what_is_no_escape_goes_through() {
        assert_eq!(filter(&[b"ls\n"]), (b"ls\n".to_vec(), None));
        assert_eq!(filter(&[b"\x01\x01"]), (b"\x01".to_vec(), None));
        assert_eq!(filter(&[b"\x01z"]), (b"\x01z".to_vec(), None));
    }

    #[test]
    fn the_escape_may_come_in_pieces() {
        assert_eq!(filter(&[b"a\x01", b"x"]), (b"a".to_vec(), Some(Wish::Quit)));
        assert_eq!(filter(&[b"\x01?"]), (Vec::new(), Some(Wish::Help)));
    }
}
