//! The seed corpus of the fuzz targets, `tests/fuzz/seeds`: one folder per target.
//!
//! The seeds are checked in. When a format changes, write them anew and commit the difference:
//! `cargo test -p imgcache --lib write_fuzz_seeds -- --ignored`

use std::fs;
use std::path::PathBuf;

use super::testing::{
    ALL_COMPRESSIONS, BzImageBuilder, ElfBuilder, compress, cpio_archive, cpio_entry, note,
};
use super::{Compression, ImportOptions, import_initrd, import_kernel};
use crate::image::manifest::{MIN_CHUNK_SIZE, Manifest};
use crate::testing::{manifest, noise};

/// Seeds with this start of their name are accepted; the others are just handled.
const VALID: &str = "valid-";

/// The target, the seed's name, and its content.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let elf = ElfBuilder::linux();
    let archive = cpio_archive(b"content of a file");
    for compression in ALL_COMPRESSIONS {
        let valid = format!("{VALID}{compression}");
        seeds.push(("bzimage", valid.clone(), BzImageBuilder::linux(compression).build()));
        seeds.push(("elf", valid.clone(), compress(compression, &elf.build())));
        seeds.push(("cpio", valid, compress(compression, &archive)));
    }
    let mut notes = elf.clone();
    notes.parts[1].data = [note(b"", 0, b""), note(b"Xen\0", 18, &[0; 8])].concat();
    let mut entry = elf.clone();
    entry.entry = u64::MAX;
    seeds.push(("elf", format!("{VALID}plain"), elf.build()));
    seeds.push(("elf", format!("{VALID}pvh-only"), entry.build()));
    seeds.push(("elf", "entry-outside".to_owned(), notes.build()));

    let mut early = archive.clone();
    early.resize(early.len().next_multiple_of(512), 0);
    early.extend_from_slice(&compress(Compression::Zstd, &archive));
    let link = cpio_entry("070701", "link", 0o120_777, b"target");
    seeds.push(("cpio", format!("{VALID}plain"), archive.clone()));
    seeds.push(("cpio", format!("{VALID}early"), early));
    seeds.push(("cpio", format!("{VALID}link"), [&link[..], &archive].concat()));
    seeds.push(("cpio", "no-trailer".to_owned(), link));

    let mut sparse = noise(1, 20_000);
    sparse[4096..8192].fill(0);
    for (name, initrd) in [("small", &b"ramdisk"[..]), ("sparse", &sparse)] {
        let bytes = manifest(&noise(2, 9000), initrd, MIN_CHUNK_SIZE).encode().unwrap();
        seeds.push(("manifest", format!("{VALID}{name}"), bytes));
    }
    seeds
}

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target)
}

fn is_accepted(target: &str, seed: &[u8]) -> bool {
    let options = ImportOptions::default();
    match target {
        "cpio" => import_initrd(&seed, &options, &mut std::io::sink()).is_ok(),
        "manifest" => Manifest::decode(seed).is_ok(),
        _ => import_kernel(&seed, &options).is_ok(),
    }
}

#[test]
fn the_checked_in_seeds_are_what_their_names_say() {
    let mut count = 0;
    for target in ["bzimage", "cpio", "elf", "manifest"] {
        for entry in fs::read_dir(folder(target)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            let accepted = is_accepted(target, &fs::read(&path).unwrap());
            assert_eq!(accepted, name.starts_with(VALID), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= seeds().len(), "{count} seeds: write them anew");
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn write_fuzz_seeds() {
    for (target, name, content) in seeds() {
        assert_eq!(is_accepted(target, &content), name.starts_with(VALID), "{target} {name}");
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(folder(target).join(name), content).unwrap();
    }
}
