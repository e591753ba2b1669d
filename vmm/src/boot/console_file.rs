//! A console that goes to a file: its beginning, since a guest can print for ever.

use std::fs::File;
use std::io::{self, Write};

/// Bytes of a console that are kept.
pub const MAX_BYTES: usize = 1 << 20;

/// What comes after the first [`MAX_BYTES`] bytes is dropped.
#[derive(Debug)]
pub struct ConsoleFile {
    file: File,
    left: usize,
}

impl ConsoleFile {
    /// Writes to `file`.
    pub fn new(file: File) -> Self {
        Self { file, left: MAX_BYTES }
    }
}

impl Write for ConsoleFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let kept = data.len().min(self.left);
        if kept > 0 {
            self.file.write_all(&data[..kept])?;
            self.left -= kept;
            if self.left == 0 {
                self.file.write_all(b"\n[the rest is not kept]\n")?;
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn the_beginning_is_kept() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = ConsoleFile::new(file.try_clone().unwrap());
        let line = [b'x'; 1000];
        for _ in 0..2000 {
            assert_eq!(console.write(&line).unwrap(), line.len());
        }
        let mut kept = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut kept).unwrap();
        assert!(kept[..MAX_BYTES].iter().all(|byte| *byte == b'x'));
        assert_eq!(&kept[MAX_BYTES..], b"\n[the rest is not kept]\n");
    }
}
