//! What a program of the host says first: `CONNECT <port>\n`.

/// The longest line, with its end: the word, a space, ten digits, the end, and some room.
pub const MAX_LINE: usize = 32;

/// What was said.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// More is to come.
    Incomplete,
    /// It is nothing that is known.
    Wrong,
    /// To be connected to a port of the guest, in a line of so many bytes.
    Connect {
        /// The port.
        port: u32,
        /// Bytes of the line, with its end.
        length: usize,
    },
}

/// Reads the first line of what came, up to [`MAX_LINE`] bytes.
pub fn parse(bytes: &[u8]) -> Line {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Line::Incomplete } else { Line::Wrong };
    };
    port(&bytes[..end]).map_or(Line::Wrong, |port| Line::Connect { port, length: end + 1 })
}

fn port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, number) = line.split_once(' ')?;
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("connect") && digits).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port_or_is_wrong() {
        for (text, line) in [
            ("", Line::Incomplete),
            ("CONNECT 52", Line::Incomplete),
            ("CONNECT 52\n", Line::Connect { port: 52, length: 11 }),
            ("connect 4294967295\nrest", Line::Connect { port: u32::MAX, length: 19 }),
            ("CONNECT 4294967296\n", Line::Wrong),
            ("CONNECT -1\n", Line::Wrong),
            ("CONNECT +1\n", Line::Wrong),
            ("CONNECT \n", Line::Wrong),
            ("CONNECT\n", Line::Wrong),
            ("\n", Line::Wrong),
            ("GET / HTTP/1.1\r\n", Line::Wrong),
            ("CONNECT 00000000000000000000000052\n", Line::Wrong),
            ("CONNECT 00000000000000000052\n", Line::Connect { port: 52, length: 29 }),
            ("CONNECT \u{e9}\n", Line::Wrong),
        ] {
            let bytes = &text.as_bytes()[..text.len().min(MAX_LINE)];
            assert_eq!(parse(bytes), line, "{text:?}");
        }
    }
}
