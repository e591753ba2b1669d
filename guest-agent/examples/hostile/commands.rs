//! Commands that no driver would submit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use control_abi::command::{Header, MAX_BUFFER, MAX_INPUT, Place, STATUS_OFFSET};
use control_abi::event::RING_DOWN;
use control_abi::field::Tag;
use control_abi::operation::{OPERATIONS, Operation};
use control_abi::register::{MMIO_BASE, Register};
use control_abi::status::{ACCEPTED, DONE, Error};
use guest_agent::memory::PAGE;

use crate::Failure;
use crate::shared::{BUFFER, COMMAND, RING, Shared, known};

const PING: u16 = Operation::Ping as u16;

/// Addresses at which there is no RAM, or not enough of it for a page.
fn nowhere(shared: &Shared) -> Vec<u64> {
    let end = shared.ram.iter().map(|(_, end)| *end).max().unwrap_or(0);
    let mut places = vec![
        MMIO_BASE,
        MMIO_BASE + 0x40,
        0xfec0_0000,
        0xfee0_0000,
        end.next_multiple_of(2 << 20) + (1 << 40),
        1 << 52,
        1 << 63,
        0xffff_ffff_ffff_f000,
        0xffff_ffff_ffff_ffc0,
    ];
    // The hole below 4 GiB.
    places.extend([0xd000_0000, 0xe000_0000, 0xffff_f000, 0xffff_ffc0]);
    places
}

/// Commands, inputs and buffers where they cannot be.
pub fn places(shared: &mut Shared) -> Result<(), Failure> {
    for address in nowhere(shared) {
        let result = shared.submit(address)?;
        if result != Error::BadAddress.status() {
            return Err(format!("a command at {address:#x} gives {result:#010x}").into());
        }
    }
    let good = Header::inline(PING, 1, 8, 8)?;
    for odd in [1, 2, 4, 8, 16, 32, 63] {
        let address = shared.address(COMMAND) + odd;
        let result = shared.submit(address)?;
        if result != Error::BadAddress.status() {
            return Err(format!("a command at {address:#x} gives {result:#010x}").into());
        }
    }
    for address in nowhere(shared) {
        let at = Place::At(address);
        let input = Header { input: at, ..good };
        shared.expect(&input.encode(), &[], Error::BadAddress)?;
        let buffer = Header { buffer: at, ..good };
        shared.expect(&buffer.encode(), &[], Error::BadAddress)?;
    }
    // Behind the end of RAM, by one byte.
    for (_, end) in shared.ram.clone() {
        let is_end = !shared.ram.iter().any(|(start, _)| *start == end);
        let at = Place::At(end.next_multiple_of(PAGE as u64).wrapping_sub(7));
        let header = Header { input: at, ..good };
        shared.place(&header.encode(), &[]);
        let outcome = shared.command()?;
        // The firmware's tables may be there, which are RAM to the machine.
        if is_end && outcome != Error::BadAddress.status() && outcome != DONE {
            return Err(format!("input at the end {end:#x} gives {outcome:#010x}").into());
        }
    }
    // A buffer that overlaps the command itself, at all of its words: whatever becomes of the command,
    // nothing else may be touched.
    let command = shared.address(COMMAND);
    for offset in (0..64).step_by(4) {
        let buffer = Place::At(command + offset);
        let header = Header { buffer, ..good };
        shared.place(&header.encode(), &[0xff; 8]);
        let result = shared.submit(command)?;
        if result != DONE {
            return Err(format!("a buffer within the command gives {result:#010x}").into());
        }
    }
    Ok(())
}

/// Words of the header that cannot be.
pub fn headers(shared: &mut Shared) -> Result<(), Failure> {
    let good = Header::inline(PING, 1, 8, 8)?.encode();
    let cases: &[(usize, &[u8], Error)] = &[
        (0, b"DCRX", Error::BadMagic),
        (0, &[0; 4], Error::BadMagic),
        (4, &[0, 0], Error::BadVersion),
        (4, &[2, 0], Error::BadVersion),
        (4, &[0xff, 0xff], Error::BadVersion),
        (6, &[0, 0], Error::BadVersion),
        (6, &[0xff, 0xff], Error::BadVersion),
        (10, &[4, 0], Error::BadFlags),
        (10, &[0xff, 0xff], Error::BadFlags),
        (60, &[1, 0, 0, 0], Error::BadFlags),
        (24, &[1], Error::BadFlags),
        (40, &[0xff; 8], Error::BadFlags),
        (32, &[0xff; 4], Error::BadLength),
        (36, &[0xff; 4], Error::BadLength),
        (36, &(MAX_BUFFER + 1).to_le_bytes(), Error::BadLength),
        (32, &(MAX_INPUT + 1).to_le_bytes(), Error::BadLength),
        (8, &[0xff, 0xff], Error::BadOperation),
        (8, &[0x0a, 0], Error::BadOperation),
    ];
    for (at, wrong, error) in cases {
        let mut header = good;
        header[*at..at + wrong.len()].copy_from_slice(wrong);
        shared.expect(&header, &[0; 8], *error)?;
    }
    // A status that the guest writes itself means nothing.
    for status in [0, DONE, ACCEPTED, u32::MAX] {
        let mut header = good;
        header[usize::from(STATUS_OFFSET)..][..4].copy_from_slice(&status.to_le_bytes());
        shared.place(&header, &[0; 8]);
        if shared.command()? != DONE {
            return Err(format!("a command with the status {status:#x} is not done").into());
        }
    }
    // All operations, without arguments and with wrong ones.
    for operation in OPERATIONS {
        for input in [&[][..], &[0xff; 100], &[5, 0, 0xff, 0xff], &[0; 64]] {
            let header = Header::inline(operation.number(), 2, input.len(), 512)?;
            shared.place(&header.encode(), input);
            shared.command()?;
        }
    }
    Ok(())
}

/// Text that would spoil a log.
pub fn texts(shared: &mut Shared) -> Result<(), Failure> {
    let field = |text: &[u8]| -> Result<Vec<u8>, Failure> {
        let mut field = Tag::Message.number().to_le_bytes().to_vec();
        field.extend(u16::try_from(text.len())?.to_le_bytes());
        field.extend(text);
        field.resize(field.len().next_multiple_of(4), 0);
        Ok(field)
    };
    let control: String = (0..32_u8).chain([127]).map(char::from).collect();
    let long = "\x1b[2J\r\n".repeat(170);
    for (text, error) in [
        (control.as_bytes(), None),
        (long.as_bytes(), None),
        ("\u{202e}\u{feff}\u{9b}31m".as_bytes(), None),
        (&[b'x'; 1025][..], Some(Error::BadField)),
        (&[b'x'; 4000][..], Some(Error::BadField)),
        (&[0xff, 0xfe][..], Some(Error::BadField)),
        (&[0xed, 0xa0, 0x80][..], Some(Error::BadField)),
    ] {
        let input = field(text)?;
        let header = Header::inline(Operation::Log.number(), 3, input.len(), 0)?;
        shared.place(&header.encode(), &input);
        let outcome = shared.command()?;
        if outcome != error.map_or(DONE, Error::status) {
            return Err(format!("a text of {} bytes gives {outcome:#010x}", text.len()).into());
        }
    }
    Ok(())
}

/// Rings where they cannot be, and one that is spoilt.
pub fn rings(shared: &mut Shared) -> Result<(), Failure> {
    let mut bad = nowhere(shared);
    let good = shared.address(RING);
    bad.extend([good + 1, good + 32, good + 2048, good + 4096 - 64]);
    for address in bad {
        let low = set_ring(shared, address)?;
        if low != RING_DOWN {
            return Err(format!("a ring at {address:#x} is taken").into());
        }
    }
    set_ring(shared, good)?;
    let header = Header::inline(Operation::ImageStat.number(), 4, 0, 512)?;
    for value in [0, 1, 63, 64, 65, 0x7fff_ffff, u32::MAX] {
        for at in [0, 4, 8, 64, 96] {
            shared.memory.store(RING + at, value);
        }
        shared.registers.write(Register::RingTail, value);
        shared.place(&header.encode(), &[]);
        shared.command()?;
        known(shared.registers.read(Register::Result))?;
    }
    // The ring where commands are.
    set_ring(shared, shared.address(COMMAND))?;
    shared.place(&header.encode(), &[]);
    shared.command().map(drop)
}

fn set_ring(shared: &Shared, address: u64) -> Result<u32, Failure> {
    shared.registers.write(Register::RingHigh, u32::try_from(address >> 32)?);
    shared.registers.write(Register::RingLow, u32::try_from(address & 0xffff_ffff)?);
    Ok(shared.registers.read(Register::RingLow))
}

/// A command that another processor writes to all the time, as does this one between commands.
pub fn changing(shared: &mut Shared) -> Result<(), Failure> {
    let buffer = shared.address(BUFFER);
    let good = Header::inline(PING, 5, 1024, 0)?;
    let good = Header { buffer: Place::At(buffer), buffer_length: 4096, ..good }.encode();
    let end = Arc::new(AtomicBool::new(false));
    let (told, memory) = (Arc::clone(&end), Arc::clone(&shared.memory));
    // Operation, flags and all lengths, but not the addresses: where the device then writes is still
    // within what it was given.
    let writer = thread::spawn(move || {
        let mut number = 0_u32;
        while !told.load(Ordering::Relaxed) {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            memory.store(COMMAND + 32, number >> 16);
            memory.store(COMMAND + 36, number >> 19);
            memory.store(COMMAND + 64 + usize::from(number.to_le_bytes()[3]) * 4, number);
        }
    });
    let mut result = Ok(());
    for _ in 0..5_000 {
        shared.memory.write(COMMAND, &good);
        result = shared.submit(shared.address(COMMAND)).map(drop);
        if result.is_err() {
            break;
        }
    }
    end.store(true, Ordering::Relaxed);
    writer.join().map_err(|_| "the writer has failed")?;
    result
}

/// As many commands as there can be, without regard to credit.
pub fn flood(shared: &mut Shared) -> Result<(), Failure> {
    let header = Header::inline(PING, 6, 8, 8)?.encode();
    shared.place(&header, &[0; 8]);
    let mut limited = 0_u32;
    for _ in 0..100_000 {
        let result = shared.submit(shared.address(COMMAND))?;
        match result {
            DONE => {}
            result if result == Error::RateLimited.status() => limited += 1,
            result => return Err(format!("a flood gives {result:#010x}").into()),
        }
    }
    if limited == 0 {
        return Err("nothing limits a flood".into());
    }
    Ok(())
}

/// Headers that are right but for a few random words, with random inputs.
pub fn random(shared: &mut Shared, count: u64, seed: u64) -> Result<(), Failure> {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..count {
        let [operation, input, length, changes, ..] = next().to_le_bytes();
        let operation = OPERATIONS[usize::from(operation) % OPERATIONS.len()];
        let length = usize::from(length) * 8;
        let mut header = Header::inline(operation.number(), number, usize::from(input), length)?;
        let buffer = shared.address(BUFFER);
        if changes & 1 != 0 {
            (header.buffer, header.buffer_length) = (Place::At(buffer), 4096);
        }
        let mut bytes = header.encode();
        for _ in 0..changes >> 1 & 3 {
            let [at, value, ..] = next().to_le_bytes();
            // A random address could be one that belongs to the kernel: those words stay.
            let at = usize::from(at) % 64;
            if !(24..32).contains(&at) && !(40..48).contains(&at) {
                bytes[at] = value;
            }
        }
        // Nor can the flags say that a buffer is where the word says that stands there: at zero.
        bytes[10] |= u8::from(changes & 1 == 0) << 1 | 1;
        let mut arguments = vec![0; usize::from(input)];
        for word in arguments.chunks_mut(8) {
            let random = next().to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
        if let (true, Some(head)) = (changes & 8 != 0, arguments.first_chunk_mut::<4>()) {
            // A field that there is, often with a length that fits.
            *head = [head[0] % 30, 0, input.saturating_sub(4), 0];
        }
        shared.place(&bytes, &arguments);
        shared.command_once()?;
        if number % 10_000 == 9_999 {
            shared.settle()?;
        }
    }
    Ok(())
}
