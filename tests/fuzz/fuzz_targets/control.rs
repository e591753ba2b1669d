//! What a guest does to the control device: accesses of any width and order, commands of any content at
//! any place, answers early and late, and a guest that rewrites its memory meanwhile.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control_abi::command::Header;
use control_abi::event::{Event, Kind};
use control_abi::register::{self, Register};
use control_abi::rights;
use control_abi::status::Error;
use devices::bus::BusDevice;
use devices::control::{Answer, Call, ControlDevice, Identity, Operations, Rate};
use devices::interrupt::InterruptLine;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Two pieces of RAM with a hole between.
const PIECE: usize = 0x8000;
const HIGH: u64 = 0x1_0000;

/// Answers as the input says.
struct Anything(Vec<u8>);

impl Operations for Anything {
    fn call(&mut self, call: Call) -> Answer {
        assert!(call.input.len() <= 4032 && call.buffer_length <= 1 << 20, "{call:?}");
        match self.0.pop() {
            Some(0..64) => Answer::Failed(Error::Host),
            Some(length @ 64..128) => Answer::Done(vec![length; usize::from(length)]),
            _ => Answer::Accepted,
        }
    }

    fn mark(&mut self, _: u32) {}
}

/// Takes bytes from the input; zeros when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// An address of which many are RAM.
    fn address(&mut self) -> u64 {
        let near = u64::from(u16::from_le_bytes(self.bytes()));
        match self.byte() % 4 {
            0 => near,
            1 => near & !63,
            2 => HIGH + (near & 0x7fff),
            _ => u64::from_le_bytes(self.bytes()),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let pieces = [(GuestAddress(0), PIECE), (GuestAddress(HIGH), PIECE)];
    let memory = GuestMemoryMmap::from_ranges(&pieces).expect("RAM");
    let identity = Identity {
        name: "vm".into(),
        image: "image".into(),
        manifest: [1; 32],
        cpus: 1,
        memory_bytes: 1 << 29,
        rights: u32::from(input.byte()) & (rights::MANAGER | rights::BOOT | rights::MIGRATE),
        features: 0,
        commands: Rate { per_second: 1000, burst: 256 },
        boots: Rate { per_second: 16, burst: 64 },
    };
    let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).expect("an event"));
    let time = Arc::new(AtomicU64::new(0));
    let clock = time.clone();
    let now = move || Duration::from_millis(clock.load(Ordering::Relaxed));
    let answers = Anything(input.bytes::<16>().to_vec());
    let mut device = ControlDevice::new(identity, memory.clone(), answers, line, Box::new(now));

    while !input.0.is_empty() {
        match input.byte() % 8 {
            0 => {
                let (offset, width) = (input.byte(), usize::from(input.byte() % 9));
                device.read(u64::from(offset), &mut vec![0; width]);
            }
            1 => {
                let (offset, width) = (input.byte(), usize::from(input.byte() % 9));
                device.write(u64::from(offset), &input.bytes::<8>()[..width.min(8)]);
            }
            2 => {
                // A whole command, and its address.
                let address = input.address();
                let mut header: [u8; 64] = input.bytes();
                if input.byte() % 4 != 0 {
                    let inline = Header::inline(u16::from(header[8]), 0, header[32].into(), 64);
                    header = inline.expect("fits").encode();
                }
                let _ = memory.write_slice(&header, GuestAddress(address));
                let _ = memory.write_slice(&input.bytes::<32>(), GuestAddress(address.wrapping_add(64) & !7));
                let [high, low] = [address >> 32, address & 0xffff_ffff];
                device.write(Register::CommandHigh as u64, &(high as u32).to_le_bytes());
                device.write(Register::CommandLow as u64, &(low as u32).to_le_bytes());
            }
            3 => {
                let address = input.address();
                let _ = memory.write_slice(&input.bytes::<16>(), GuestAddress(address));
            }
            4 => {
                let (ticket, length) = (u64::from(input.byte() % 70), usize::from(input.byte()));
                let output = vec![0xaa; length];
                device.complete(ticket, if length % 2 == 0 { Ok(&output) } else { Err(Error::Host) });
            }
            5 => device.raise(Event::new(Kind::VmEnded, 1)),
            6 => {
                time.fetch_add(input.byte().into(), Ordering::Relaxed);
            }
            _ => {
                let _ = device.buffer(u64::from(input.byte() % 70));
                let state = device.state();
                if input.byte() % 16 == 0 {
                    device.restore(&state).expect("its own state");
                }
            }
        }
        let mut magic = [0; 4];
        device.read(Register::Magic as u64, &mut magic);
        assert_eq!(u32::from_le_bytes(magic), register::MAGIC);
        let counters = device.counters();
        assert!(counters.failed <= counters.commands);
    }
});
