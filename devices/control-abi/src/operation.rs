//! What can be asked for: the operations, their arguments, and the right that each needs.

use crate::field::Occurs::{self, Many, Once, Optional};
use crate::field::Tag;
use crate::rights;

/// What a command's input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Bytes without a meaning to the device.
    Raw,
    /// These fields.
    Fields(&'static [(Tag, Occurs)]),
    /// Not laid down yet: the operation is reserved.
    Reserved,
}

/// What a command's buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Nothing; it may be empty.
    Unused,
    /// The device writes these fields into it.
    Fields(&'static [Tag]),
    /// The device writes raw bytes into it.
    Written,
    /// The device reads it.
    Read,
}

macro_rules! operations {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $right:expr, $input:expr, $buffer:expr;)+) => {
        /// An operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Operation {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        /// All operations, by number.
        pub const OPERATIONS: &[Operation] = &[$(Operation::$name),+];

        impl Operation {
            /// The operation with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its number.
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)+ }
            }

            /// Its name.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// The rights that a guest must have for it.
            pub const fn rights(self) -> u32 {
                match self { $(Self::$name => $right,)+ }
            }

            /// What its input is.
            pub const fn input(self) -> Input {
                match self { $(Self::$name => $input,)+ }
            }

            /// What its buffer is for.
            pub const fn buffer(self) -> Buffer {
                match self { $(Self::$name => $buffer,)+ }
            }

            /// What it does, in one line of Markdown.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

const ALL: u32 = 0;
const MANAGER: u32 = rights::MANAGER;

operations! {
    /// Puts the input into the buffer. So a driver sees that the device reads and writes the memory that it means.
    Ping = 0x00, "ping", ALL, Input::Raw, Buffer::Written;
    /// Says which VM this is.
    Identify = 0x01, "identify", ALL, Input::Fields(&[]), Buffer::Fields(&[
        Tag::VmName, Tag::Image, Tag::Manifest, Tag::Rights, Tag::Generation, Tag::Cpus, Tag::Memory,
        Tag::Milliseconds,
    ]);
    /// Puts a message into the VM's log on the host.
    Log = 0x02, "log", ALL, Input::Fields(&[(Tag::Message, Once), (Tag::Level, Optional)]), Buffer::Unused;
    /// Says that the guest does what it was booted for.
    Ready = 0x03, "ready", ALL, Input::Fields(&[(Tag::Message, Optional)]), Buffer::Unused;
    /// Says that the guest is alive.
    Heartbeat = 0x04, "heartbeat", ALL, Input::Fields(&[]), Buffer::Unused;
    /// Says values of the guest's metrics: pairs of name and value.
    Metrics = 0x05, "metrics", ALL, Input::Fields(&[(Tag::Name, Many), (Tag::Value, Many)]), Buffer::Unused;
    /// Notes a name with its time, for tracing a boot.
    Mark = 0x06, "mark", ALL, Input::Fields(&[(Tag::Name, Once)]), Buffer::Unused;
    /// Gives up the command with this ticket, or all that were accepted: the device leaves their memory alone from then on, and no event comes of them. What was begun may still be done.
    Cancel = 0x07, "cancel", ALL, Input::Fields(&[(Tag::Ticket, Optional)]), Buffer::Unused;
    /// Says what an image has: the guest's own, or with the right another one.
    ImageStat = 0x08, "image-stat", ALL, Input::Fields(&[(Tag::Image, Optional)]), Buffer::Fields(&[
        Tag::Image, Tag::Manifest, Tag::Chunks, Tag::ChunkBytes, Tag::Bytes,
    ]);
    /// Puts a chunk of an image into the buffer, or a part of it. Chunks are checked before a guest sees them.
    ImageFetch = 0x09, "image-fetch", ALL, Input::Fields(&[
        (Tag::Image, Optional), (Tag::Chunk, Once), (Tag::Offset, Optional), (Tag::Length, Optional),
    ]), Buffer::Written;
    /// Finds out where a service is.
    Resolve = 0x10, "resolve", ALL, Input::Reserved, Buffer::Unused;
    /// Makes a service known.
    Announce = 0x11, "announce", ALL, Input::Reserved, Buffer::Unused;
    /// Takes identifiers of a service.
    Listen = 0x12, "listen", ALL, Input::Reserved, Buffer::Unused;
    /// Takes one identifier.
    Bind = 0x13, "bind", ALL, Input::Reserved, Buffer::Unused;
    /// Takes the next client.
    Accept = 0x14, "accept", ALL, Input::Reserved, Buffer::Unused;
    /// Ends a service.
    Withdraw = 0x15, "withdraw", ALL, Input::Reserved, Buffer::Unused;
    /// Changes the table of flows.
    Flow = 0x20, "flow", ALL, Input::Reserved, Buffer::Unused;
    /// Makes changes of flows take effect, all at once.
    Sync = 0x21, "sync", ALL, Input::Reserved, Buffer::Unused;
    /// Asks for a move.
    MigrateRequest = 0x30, "migrate-request", rights::MIGRATE, Input::Reserved, Buffer::Unused;
    /// Says that a move can go on.
    Prepared = 0x31, "prepared", rights::MIGRATE, Input::Reserved, Buffer::Unused;
    /// Gives a move up.
    Abort = 0x32, "abort", rights::MIGRATE, Input::Reserved, Buffer::Unused;
    /// Says that a move is over.
    MoveDone = 0x33, "move-done", rights::MIGRATE, Input::Reserved, Buffer::Unused;
    /// Splits a range of identifiers.
    Split = 0x40, "split", rights::SPLIT, Input::Reserved, Buffer::Unused;
    /// Joins two ranges.
    Merge = 0x41, "merge", rights::SPLIT, Input::Reserved, Buffer::Unused;
    /// Has another server answer too.
    Mirror = 0x42, "mirror", rights::SPLIT, Input::Reserved, Buffer::Unused;
    /// Has another server answer instead.
    Move = 0x43, "move", rights::SPLIT, Input::Reserved, Buffer::Unused;
    /// Boots VMs from an image; the VMM fetches it. The numbers of the VMs come in the order of their names.
    VmBoot = 0x50, "vm-boot", MANAGER | rights::BOOT, Input::Fields(&[
        (Tag::Image, Once), (Tag::Count, Optional), (Tag::Memory, Optional), (Tag::Cpus, Optional),
        (Tag::CommandLine, Optional), (Tag::VmName, Optional),
    ]), Buffer::Fields(&[Tag::Vm, Tag::VmName]);
    /// Says how a VM fares.
    VmStatus = 0x51, "vm-status", MANAGER, Input::Fields(&[(Tag::Vm, Once)]), Buffer::Fields(&[
        Tag::Vm, Tag::VmName, Tag::Image, Tag::State, Tag::Memory, Tag::Cpus, Tag::Milliseconds,
        Tag::ReadyMilliseconds, Tag::ExitCode, Tag::Outcome, Tag::Console,
    ]);
    /// Ends a VM.
    VmStop = 0x52, "vm-stop", MANAGER, Input::Fields(&[(Tag::Vm, Once)]), Buffer::Unused;
    /// Says which VMs there are, as many as fit, by number.
    VmList = 0x53, "vm-list", MANAGER, Input::Fields(&[(Tag::After, Optional)]), Buffer::Fields(&[
        Tag::Vm, Tag::VmName, Tag::Image, Tag::State, Tag::ExitCode,
    ]);
    /// Makes a VM that waits for its image from the manager, chunk by chunk, and starts when it has all.
    VmPrepare = 0x54, "vm-prepare", MANAGER | rights::BOOT, Input::Fields(&[
        (Tag::Image, Once), (Tag::Memory, Optional), (Tag::Cpus, Optional),
        (Tag::CommandLine, Optional), (Tag::VmName, Optional),
    ]), Buffer::Fields(&[Tag::Vm, Tag::VmName]);
    /// Hands a chunk, which is in the buffer, to a VM that waits for it.
    VmLoad = 0x55, "vm-load", MANAGER | rights::BOOT, Input::Fields(&[
        (Tag::Vm, Once), (Tag::Chunk, Once),
    ]), Buffer::Read;
    /// Says which cache the images of VMs come from that are booted from now on; no servers mean the host's own choice.
    CacheConfig = 0x58, "cache-config", MANAGER | rights::CACHE, Input::Fields(&[(Tag::Servers, Optional)]),
        Buffer::Fields(&[Tag::Servers]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_find_their_operation() {
        for pair in OPERATIONS.windows(2) {
            assert!(pair[0].number() < pair[1].number());
        }
        for operation in OPERATIONS {
            assert_eq!(Operation::from_number(operation.number()), Some(*operation));
        }
        assert_eq!(Operation::from_number(0x0a), None);
    }
}
