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
const SERVE: u32 = rights::SERVE;

/// What a range of identifiers is named by: without bounds, all of the service that the VM has.
const RANGE: &[(Tag, Occurs)] =
    &[(Tag::Service, Once), (Tag::Form, Optional), (Tag::Low, Optional), (Tag::High, Optional)];
/// What is to move, and where to.
const MOVE: &[(Tag, Occurs)] = &[
    (Tag::Service, Once),
    (Tag::Form, Optional),
    (Tag::Low, Optional),
    (Tag::High, Optional),
    (Tag::Place, Once),
];
/// An errand that was done.
const ERRAND: &[(Tag, Occurs)] = &[(Tag::Move, Once), (Tag::Errand, Once)];
/// What is told of a range. One range follows the other.
const ENDPOINT: &[Tag] =
    &[Tag::Service, Tag::Form, Tag::Low, Tag::High, Tag::Vid, Tag::Epoch, Tag::Phase, Tag::Own];

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
    /// Finds services of this name, or of a pattern of names, and identifiers by which they are reached; with a number, the one of each range to which a request of that hash goes. No fields come if there are none.
    Resolve = 0x10, "resolve", ALL, Input::Fields(&[(Tag::Service, Once), (Tag::Hash, Optional)]),
        Buffer::Fields(ENDPOINT);
    /// Makes identifiers of a service known as this VM's: one, number 0 of the prefix form, if nothing else is said. Nobody is let in before LISTEN.
    Announce = 0x11, "announce", SERVE, Input::Fields(RANGE), Buffer::Fields(ENDPOINT);
    /// Takes frames to identifiers that this VM has announced, and lets it send as them. Done again it changes nothing.
    Listen = 0x12, "listen", SERVE, Input::Fields(RANGE), Buffer::Fields(ENDPOINT);
    /// As LISTEN, of one identifier.
    Bind = 0x13, "bind", SERVE, Input::Fields(&[(Tag::Vid, Once)]), Buffer::Fields(ENDPOINT);
    /// Takes the next errand, of a service if one is named: what the host wants this VM to do in a move. No fields come if there is none; an event tells when there is. An errand comes again until it was answered by PREPARED, DONE or ABORT.
    Next = 0x14, "next", SERVE, Input::Fields(&[(Tag::Service, Optional)]), Buffer::Fields(&[
        Tag::Errand, Tag::Move, Tag::Service, Tag::Form, Tag::Low, Tag::High, Tag::Vid, Tag::Bytes,
    ]);
    /// Gives identifiers up: all of the service that this VM has, if no range is said.
    Withdraw = 0x15, "withdraw", SERVE, Input::Fields(RANGE), Buffer::Unused;
    /// Notes a change of where frames to one of this VM's identifiers go, for SYNC: to another VM of the host that may serve them, or back.
    Flow = 0x20, "flow", SERVE, Input::Fields(&[(Tag::Change, Once), (Tag::Vid, Once), (Tag::Place, Optional)]),
        Buffer::Unused;
    /// Makes the changes take effect that were noted, all or none, and forgets them. The output says how many; if none because one failed, 0 and which and why.
    Sync = 0x21, "sync", SERVE, Input::Fields(&[]), Buffer::Fields(&[Tag::Count, Tag::Change, Tag::Vid, Tag::Message]);
    /// Asks for a move of identifiers that this VM has to another VM: `VM`, `HOST/VM`, or `any`. It ends with the move; errands come meanwhile.
    MigrateRequest = 0x30, "migrate-request", SERVE | rights::MIGRATE, Input::Fields(MOVE),
        Buffer::Fields(&[Tag::Move, Tag::Place, Tag::Microseconds]);
    /// Says that an errand of a move that is not decided yet is done: the VM is ready, stands still and all its state was sent, or has taken that up without a voice.
    Prepared = 0x31, "prepared", SERVE, Input::Fields(ERRAND), Buffer::Unused;
    /// Says that an errand cannot be done. Before it is decided the move goes back.
    Abort = 0x32, "abort", SERVE, Input::Fields(&[
        (Tag::Move, Once), (Tag::Errand, Optional), (Tag::Message, Optional),
    ]), Buffer::Unused;
    /// Says that an errand of a move that is decided is done.
    Done = 0x33, "done", SERVE, Input::Fields(ERRAND), Buffer::Unused;
    /// Sends a piece of the state of what moves, which is in the buffer, to the host that it goes to.
    MoveSend = 0x34, "move-send", SERVE, Input::Fields(&[(Tag::Move, Once), (Tag::At, Once)]), Buffer::Read;
    /// Gives the state that was sent for this VM, from a byte on, as much as fits.
    MoveReceive = 0x35, "move-receive", SERVE, Input::Fields(&[(Tag::Move, Once), (Tag::At, Once)]), Buffer::Written;
    /// Splits identifiers that this VM has in two, the second from a number on; if a VM is named, the second part moves there.
    Split = 0x40, "split", SERVE | rights::SPLIT, Input::Fields(&[
        (Tag::Service, Once), (Tag::Form, Optional), (Tag::Low, Optional), (Tag::High, Optional), (Tag::Pivot, Once),
        (Tag::Place, Optional),
    ]), Buffer::Fields(ENDPOINT);
    /// Joins identifiers that this VM has and that follow each other.
    Merge = 0x41, "merge", SERVE | rights::SPLIT, Input::Fields(RANGE), Buffer::Fields(ENDPOINT);
    /// Notes another VM that has a copy of what is served, or that it has none any more (with `Change` 3).
    Mirror = 0x42, "mirror", SERVE | rights::SPLIT, Input::Fields(&[
        (Tag::Service, Once), (Tag::Form, Optional), (Tag::Low, Optional), (Tag::High, Optional), (Tag::Place, Once),
        (Tag::Change, Optional),
    ]), Buffer::Fields(ENDPOINT);
    /// As `MIGRATE_REQUEST`, for services that bring their state over by themselves: no state is sent.
    Move = 0x43, "move", SERVE | rights::SPLIT, Input::Fields(MOVE),
        Buffer::Fields(&[Tag::Move, Tag::Place, Tag::Microseconds]);
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
