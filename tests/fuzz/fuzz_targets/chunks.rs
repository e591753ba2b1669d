//! Who serves an image's chunks to a VM's process, against any process: it gives out chunks of the disk
//! only, and in the form that it says.
#![no_main]

use std::io::{self, Read, Write};
use std::sync::LazyLock;

use imgcache::image::manifest::{ChunkEntry, ChunkSpan, Manifest};
use imgcache::lazy::served::serve_chunks;
use imgcache::lazy::{ChunkSource, SourceError};
use libfuzzer_sys::fuzz_target;

#[derive(Debug)]
struct Source(Manifest);

impl ChunkSource for Source {
    fn manifest(&self) -> &Manifest {
        &self.0
    }

    fn fetch(&self, chunks: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>> {
        let disk = self.0.disk().unwrap().1;
        let fetch = |chunk: &ChunkSpan| {
            let number = chunk.index - disk.first_chunk;
            assert!(number < disk.chunk_count && !chunk.entry.zero);
            if number == 3 {
                return Err(SourceError::Refused("x".repeat(5000)));
            }
            Ok(vec![1; chunk.length as usize])
        };
        chunks.iter().map(fetch).collect()
    }
}

static SOURCE: LazyLock<Source> = LazyLock::new(|| {
    let header = br#"{"architecture":"x86_64","chunk_size":4096,"kernel":{"format":"elf","compression":null,
        "entries":{"linux64":16777216,"pvh32":null},"setup_header":null,"initrd_addr_max":2147483647,
        "initrd_above_4g":true,"cmdline_max":2047,"version":null},"cmdline":"","segments":[
        {"kind":"kernel","placement":{"fixed":{"address":16777216}},"data_length":8192,
         "memory_length":8192,"first_chunk":0,"chunk_count":2},
        {"kind":"block","placement":"device","data_length":33280,"memory_length":33280,
         "first_chunk":2,"chunk_count":9}],"notes":[]}"#;
    let chunks: Vec<ChunkEntry> = (0..11)
        .map(|n| if n == 5 { ChunkEntry::ZERO } else { ChunkEntry::of(&[n + 1; 4096]) })
        .collect();
    let mut bytes = b"vmmimage".to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend((chunks.len() as u32).to_le_bytes());
    bytes.extend(header);
    for chunk in &chunks {
        bytes.extend(chunk.key.0);
        bytes.extend(chunk.checksum.to_le_bytes());
    }
    Source(Manifest::decode(&bytes).unwrap())
});

struct Stream<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let mut stream = Stream { input, output: Vec::new() };
    let served = serve_chunks(&mut stream, &*SOURCE);
    let mut output = &stream.output[..];
    let mut count = 0;
    while let Some((length, rest)) = output.split_first_chunk::<4>() {
        output = match u32::from_le_bytes(*length) {
            0 => {
                let (length, rest) = rest.split_first_chunk::<2>().unwrap();
                &rest[usize::from(u16::from_le_bytes(*length))..]
            }
            length => {
                assert!(length == 4096 || length == 512);
                count += 1;
                &rest[length as usize..]
            }
        };
    }
    assert!(output.is_empty());
    if let Ok(served) = served {
        assert_eq!(served, count);
    }
});
