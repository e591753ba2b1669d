//! Kernels and ramdisks that are cut short, damaged or malicious: every push of one is refused with
//! the file's name, and the image that was there before stays.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Output;

use crate::common::{Bench, guest_file, stderr};
use crate::support::{files, finish, manifest_id, push, push_arguments, ready};

/// The largest number that a field of 4 bytes can have.
const MOST: [u8; 4] = [0xff; 4];

/// Which of the two files is at fault.
#[derive(Debug, Clone, Copy)]
enum Role {
    Kernel,
    Ramdisk,
}

/// A good file, to be spoilt in place, and a store with a good image.
struct Victim {
    bench: Bench,
    role: Role,
    path: PathBuf,
    file: File,
    /// The good image's manifest.
    id: String,
}

impl Victim {
    fn new(role: Role, original: &str) -> Self {
        let bench = Bench::new();
        bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
        let id = manifest_id(&bench, "guest");
        let path = bench.path().join("victim");
        fs::copy(guest_file(original), &path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { bench, role, path, file, id }
    }

    fn length(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn u16(&self, offset: u64) -> u64 {
        u16::from_le_bytes(self.read(offset)).into()
    }

    fn u32(&self, offset: u64) -> u64 {
        u32::from_le_bytes(self.read(offset)).into()
    }

    fn u64(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(offset))
    }

    /// Pushes the file as it is now.
    fn push(&self, options: &[&str]) -> Output {
        let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
        let arguments = match self.role {
            Role::Kernel => push_arguments("guest", &self.path, &initrd),
            Role::Ramdisk => push_arguments("guest", &kernel, &self.path),
        };
        finish(self.bench.vmm(&[&arguments[..], options].concat()))
    }

    /// A push of the file as it is now must be refused in these words.
    fn refused(&self, what: &str, words: &str) {
        self.refused_with(what, words, &[]);
    }

    fn refused_with(&self, what: &str, words: &str, options: &[&str]) {
        let output = self.push(options);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(6), "{what}: {message}");
        assert!(message.contains(self.path.to_str().unwrap()), "{what}: {message}");
        assert!(message.contains(words), "{what}: no {words:?} in {message}");
        assert!(!message.contains("panicked at"), "{what}: {message}");
        assert!(output.stdout.is_empty(), "{what}: {output:?}");
        assert!(files(&self.bench, "tmp").is_empty(), "{what} left something behind");
        self.still_there(what);
    }

    /// The image from before still loads.
    fn still_there(&self, what: &str) {
        assert_eq!(manifest_id(&self.bench, "guest"), self.id, "{what}");
        if let Some(report) = ready(&self.bench, "guest", &["--memory", "128M"]) {
            assert_eq!(report["manifest"], self.id.as_str(), "{what}");
        }
    }

    /// Refused with these bytes at these offsets, which are put back.
    fn refused_patched(&self, what: &str, words: &str, patches: &[(u64, &[u8])]) {
        self.refused_patched_with(what, words, patches, &[]);
    }

    fn refused_patched_with(
        &self,
        what: &str,
        words: &str,
        patches: &[(u64, &[u8])],
        options: &[&str],
    ) {
        let mut originals = Vec::new();
        for (offset, bytes) in patches {
            let mut original = vec![0; bytes.len()];
            self.file.read_exact_at(&mut original, *offset).unwrap();
            originals.push((*offset, original));
            self.file.write_all_at(bytes, *offset).unwrap();
        }
        self.refused_with(what, words, options);
        for (offset, original) in originals.iter().rev() {
            self.file.write_all_at(original, *offset).unwrap();
        }
    }

    /// Refused when cut at each of these offsets; what is cut off does not come back.
    fn refused_cut(&self, mut offsets: Vec<u64>) {
        offsets.sort_unstable();
        for offset in offsets.into_iter().rev() {
            assert!(offset < self.length());
            self.file.set_len(offset).unwrap();
            self.refused(&format!("cut at {offset:#x}"), "");
        }
    }
}

/// Linux, Documentation/arch/x86/boot.rst.
#[test]
fn spoilt_bzimages_are_refused() {
    let victim = Victim::new(Role::Kernel, "vmlinuz");
    let setup = (u64::from(victim.read::<1>(0x1f1)[0]) + 1) * 512;
    let end = setup + victim.u32(0x1f4) * 16;
    let payload = setup + victim.u32(0x248);
    let payload_end = payload + victim.u32(0x24c);
    for (what, words, offset, bytes) in [
        ("setup_sects", "beyond the end of the file", 0x1f1, &MOST[..1]),
        ("syssize", "beyond the end of the file", 0x1f4, &MOST),
        ("jump", "jump", 0x201, &MOST[..1]),
        ("version", "version", 0x206, &[0, 2]),
        ("loadflags", "loadflags", 0x211, &[0]),
        ("xloadflags", "64-bit entry", 0x236, &[0, 0]),
        ("payload_offset", "payload_offset", 0x248, &MOST),
        ("payload_length", "payload_length", 0x24c, &MOST),
        ("payload_length 0", "payload_length", 0x24c, &[0; 4]),
        ("payload_length 4", "cannot unpack", 0x24c, &[4, 0, 0, 0]),
        ("payload magic", "payload", payload, &MOST),
        ("payload block", "unpack", payload + 4, &MOST),
        ("unpacked length", "4294967295", payload_end - 4, &MOST),
    ] {
        victim.refused_patched(what, words, &[(offset, bytes)]);
    }
    // No ramdisk above 4 GiB, and none below either.
    let nowhere: [(u64, &[u8]); 2] = [(0x22c, &[0; 4]), (0x236, &[1, 0])];
    victim.refused_patched("initrd_addr_max", "cannot lie below", &nowhere);
    // What only the bzImage's own code would read.
    let as_is = |what, words, offset, bytes| {
        victim.refused_patched_with(what, words, &[(offset, bytes)], &["--as-is"]);
    };
    as_is("init_size", "", 0x260, &MOST);
    as_is("pref_address", "", 0x258, &[0xff; 8]);
    victim.refused_cut(vec![
        0,
        1,
        0x1f0,
        0x1f5,
        0x201,
        0x207,
        0x250,
        0x263,
        setup - 1,
        setup,
        payload,
        payload + 3,
        payload + 1000,
        payload.midpoint(payload_end),
        payload_end - 1,
        end - 1,
    ]);
}

#[test]
fn numbers_that_are_not_relied_on_do_no_harm() {
    let victim = Victim::new(Role::Kernel, "vmlinuz");
    for (offset, bytes) in [
        (0x20e, &MOST[..2]), // kernel_version
        (0x238, &MOST),      // cmdline_size
        (0x260, &MOST),      // init_size
    ] {
        victim.file.write_all_at(bytes, offset).unwrap();
    }
    let output = victim.push(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_ne!(manifest_id(&victim.bench, "guest"), victim.id);
    ready(&victim.bench, "guest", &["--cmdline-append", &"x".repeat(4000)]);
}

/// ELF-64: offsets in the file header, and in a program header of 56 bytes.
#[test]
fn spoilt_elf_kernels_are_refused() {
    const HEADERS: u64 = 64;
    const HEADER: u64 = 56;
    const TYPE: u64 = 0;
    const OFFSET: u64 = 8;
    const ADDRESS: u64 = 24;
    const FILE_SIZE: u64 = 32;
    const MEMORY_SIZE: u64 = 40;
    let victim = Victim::new(Role::Kernel, "vmlinux");
    assert_eq!(victim.u64(32), HEADERS);
    let field = |index: u64, offset: u64| HEADERS + index * HEADER + offset;
    let of_type = |kind: u32| -> Vec<u64> {
        let all = 0..victim.u16(56);
        all.filter(|index| victim.u32(field(*index, TYPE)) == u64::from(kind)).collect()
    };
    let loads = of_type(1);
    let notes = *of_type(4).first().expect("Linux has notes");
    let (first, second) = (loads[0], loads[1]);
    let last = loads[loads.len() - 1];
    let most = u64::from(u32::MAX).to_le_bytes();
    let one = 1_u64.to_le_bytes();
    let inside = (victim.u64(field(first, ADDRESS)) + 0x1000).to_le_bytes();
    for (what, words, offset, bytes) in [
        ("class", "EI_CLASS", 4, &[1][..]),
        ("machine", "aarch64", 18, &[183, 0]),
        ("e_phoff", "beyond the end of the file", 32, &most),
        ("e_phoff", "beyond the end of the file", 32, &[0xff; 8]),
        ("e_phentsize", "e_phentsize", 54, &MOST[..2]),
        ("e_phnum", "e_phnum", 56, &MOST[..2]),
        ("no headers", "no loadable segment", 56, &[0, 0]),
        ("p_offset", "beyond the end of the file", field(first, OFFSET), &most),
        ("p_offset", "beyond the end of the file", field(first, OFFSET), &[0xff; 8]),
        ("p_filesz", "beyond the end of the file", field(last, FILE_SIZE), &most),
        ("p_memsz less than p_filesz", "p_memsz", field(first, MEMORY_SIZE), &one),
        ("p_memsz over others", "overlap", field(first, MEMORY_SIZE), &most),
        ("p_memsz behind all", "limit", field(last, MEMORY_SIZE), &most),
        ("p_memsz", "p_memsz", field(last, MEMORY_SIZE), &[0xff; 8]),
        ("p_paddr in another segment", "overlap", field(second, ADDRESS), &inside),
        ("p_paddr below 1 MiB", "p_paddr", field(first, ADDRESS), &[0; 8]),
        ("p_paddr at the end", "overflow", field(last, ADDRESS), &[0xff; 8]),
        ("notes", "beyond the end of the file", field(notes, FILE_SIZE), &most),
    ] {
        victim.refused_patched(what, words, &[(offset, bytes)]);
    }

    // Without notes there is only the ELF entry.
    victim.refused_patched(
        "entry outside",
        "entry point 0xffffffff is in no loaded segment",
        &[(24, &most), (field(notes, TYPE), &[0; 4])],
    );
    let note = victim.u64(field(notes, OFFSET));
    victim.refused_patched("namesz", "beyond the end of the notes", &[(note, &MOST)]);
    victim.refused_patched("descsz", "beyond the end of the notes", &[(note + 4, &MOST)]);
    let mut bytes = vec![0; usize::try_from(victim.u64(field(notes, FILE_SIZE))).unwrap()];
    victim.file.read_exact_at(&mut bytes, note).unwrap();
    let pvh = bytes.windows(8).position(|b| b == b"\x12\0\0\0Xen\0").expect("a PVH entry");
    let entry = note + u64::try_from(pvh).unwrap() + 8;
    victim.refused_patched(
        "PVH entry outside",
        "PVH entry point 0xffffffff is in no loaded segment",
        &[(entry, &MOST)],
    );

    let start = victim.u64(field(first, OFFSET));
    let length = victim.u64(field(first, FILE_SIZE));
    let end = victim.u64(field(last, OFFSET)) + victim.u64(field(last, FILE_SIZE));
    let headers_end = field(victim.u16(56), 0);
    victim.refused_cut(vec![
        1,
        4,
        63,
        HEADERS,
        headers_end - 1,
        headers_end,
        start,
        start + length / 2,
        start + length - 1,
        end - 1,
    ]);
}

/// Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
#[test]
fn spoilt_ramdisks_are_refused() {
    let victim = Victim::new(Role::Ramdisk, "initrd-100.cpio");
    let field = |index: u64| 6 + 8 * index;
    for (what, words, offset, bytes) in [
        ("magic", "no newc cpio archive", 0, &b"070707"[..]),
        ("mode", "mode", field(1), b"ZZZZZZZZ"),
        ("filesize", "", field(6), b"FFFFFFFF"),
        ("namesize", "namesize", field(11), b"FFFFFFFF"),
        ("namesize 0", "namesize", field(11), b"00000000"),
    ] {
        victim.refused_patched(what, words, &[(offset, bytes)]);
    }

    let mut tail = [0; 4096];
    let tail_start = victim.length() - 4096;
    victim.file.read_exact_at(&mut tail, tail_start).unwrap();
    let name = tail.windows(10).position(|bytes| bytes == b"TRAILER!!!").expect("a trailer");
    let trailer = tail_start + u64::try_from(name).unwrap() - 110;
    let first_end = (110
        + u64::from_str_radix(std::str::from_utf8(&victim.read::<8>(field(11))).unwrap(), 16)
            .unwrap())
    .next_multiple_of(4);
    victim.refused_cut(vec![
        0,
        1,
        5,
        109,
        110,
        first_end,
        first_end + 60,
        trailer / 2,
        trailer,
        trailer + 60,
        trailer + 120,
    ]);
}

#[test]
fn spoilt_compressed_ramdisks_are_refused() {
    let victim = Victim::new(Role::Ramdisk, "initrd-small.cpio.gz");
    let length = victim.length();
    victim.refused_patched("checksum", "gzip", &[(length - 8, &MOST)]);
    victim.refused_patched("length", "gzip", &[(length - 4, &MOST)]);
    victim.refused_patched("data", "gzip", &[(length / 2, &[0xff; 64])]);
    victim.refused_patched("method", "", &[(2, &MOST)]);
    victim.refused_cut(vec![1, 2, 9, 10, 1000, length / 2, length - 9, length - 5, length - 1]);
}

/// What the fuzz targets start from, and what they found.
#[test]
fn the_fuzzers_seeds_are_refused_or_taken_but_never_panic() {
    let bench = Bench::new();
    push(&bench, "guest", &guest_file("initrd-small.cpio.gz"));
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/seeds");
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let mut seen = 0;
    for (folder, role) in
        [("bzimage", Role::Kernel), ("elf", Role::Kernel), ("cpio", Role::Ramdisk)]
    {
        for seed in fs::read_dir(format!("{seeds}/{folder}")).unwrap() {
            let seed = seed.unwrap().path();
            let arguments = match role {
                Role::Kernel => push_arguments("seed", &seed, &initrd),
                Role::Ramdisk => push_arguments("seed", &kernel, &seed),
            };
            let output = finish(bench.vmm(&arguments));
            let message = stderr(&output);
            assert!(!message.contains("panicked at"), "{seed:?}: {message}");
            match output.status.code() {
                Some(0) => {
                    let id = manifest_id(&bench, "seed");
                    if let Some(report) = ready(&bench, "seed", &[]) {
                        assert_eq!(report["manifest"], id.as_str());
                    }
                }
                Some(6) => assert!(message.contains(seed.to_str().unwrap()), "{message}"),
                code => panic!("{seed:?} ends with {code:?}: {message}"),
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} seeds in {seeds}");
    bench.expect(0, &["image", "verify"]);
}
