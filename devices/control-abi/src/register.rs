//! The registers: sixteen of 32 bits, in a window of I/O ports and in a page of memory at once.
//!
//! Only aligned accesses of four bytes are answered. Any other reads as all ones and writes nothing.

/// First I/O port of the window.
pub const PORT_BASE: u16 = 0xd00;
/// Bytes of the window, ports and memory alike.
pub const WINDOW_BYTES: u16 = 64;
/// Guest-physical address of the page in which the same registers are. A driver takes it from `_CRS` or
/// the command line, not from here.
pub const MMIO_BASE: u64 = 0xd010_0000;
/// Bytes of that page; behind the registers it reads as all ones.
pub const MMIO_BYTES: u64 = 4096;
/// ACPI hardware identifier; `_CRS` has the ports, then the page.
pub const ACPI_ID: &str = "VMMD0001";
/// Word of the kernel command line that says the same without ACPI: `vmm.control=PORT,ADDRESS`, both
/// hexadecimal with `0x`.
pub const COMMAND_LINE_WORD: &str = "vmm.control";

/// What [`Register::Magic`] reads as: "DCR1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"DCR1");

/// The version register for these versions.
pub const fn version(major: u16, minor: u16) -> u32 {
    (major as u32) << 16 | minor as u32
}

macro_rules! registers {
    ($($(#[doc = $doc:literal])+ $name:ident = $offset:literal, $label:literal, $access:ident;)+) => {
        /// A register, by its offset in the window.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Register {
            $($(#[doc = $doc])+ $name = $offset,)+
        }

        /// All registers, by offset.
        pub const REGISTERS: &[Register] = &[$(Register::$name),+];

        impl Register {
            /// The register at this offset.
            pub const fn at(offset: u64) -> Option<Self> {
                match offset {
                    $($offset => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its name in documents.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What can be done with it.
            pub const fn access(self) -> Access {
                match self { $(Self::$name => Access::$access,)+ }
            }

            /// What it is, in one line of Markdown.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

/// What can be done with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read; a write does nothing.
    Read,
    /// Only written; it reads as zero.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// As in documents: `r`, `w` or `rw`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Write => "w",
            Self::ReadWrite => "rw",
        }
    }
}

registers! {
    /// 0x31524344, "DCR1": the device is there.
    Magic = 0x00, "MAGIC", Read;
    /// Major version in the upper half, minor in the lower. A driver refuses another major one.
    Version = 0x04, "VERSION", Read;
    /// What the device has, a bit each (see below).
    Features = 0x08, "FEATURES", Read;
    /// Upper half of the address of a command, and kept until it is written again.
    CommandHigh = 0x0c, "COMMAND_HI", ReadWrite;
    /// Lower half of the address of a command. The write submits it.
    CommandLow = 0x10, "COMMAND_LO", Write;
    /// Status of what was submitted last, on whichever processor; 0 before. Several submitters read the status word of their own command instead.
    Result = 0x14, "RESULT", Read;
    /// Upper half of the address of the event ring, and kept until it is written again.
    RingHigh = 0x18, "RING_HI", ReadWrite;
    /// Lower half of the address of the event ring. The write sets the ring up, at its beginning; all ones takes it down.
    RingLow = 0x1c, "RING_LO", ReadWrite;
    /// Events that the device has put into the ring, counted up and wrapped at 2^32.
    RingHead = 0x20, "RING_HEAD", Read;
    /// Events that the guest has taken out, counted the same way. More than `RING_HEAD` says, or going back, is ignored.
    RingTail = 0x24, "RING_TAIL", ReadWrite;
    /// Kinds of events that go to the ring, a bit each. The others are dropped.
    EventEnable = 0x28, "EVENT_ENABLE", ReadWrite;
    /// Kinds of events that occurred, in the ring or not; a written one bit clears.
    EventStatus = 0x2c, "EVENT_STATUS", ReadWrite;
    /// What the guest may do, a bit each (see below); the operator says it when the VM is started.
    Rights = 0x30, "RIGHTS", Read;
    /// Begins with 1. Another number than before: the guest was copied, restored or moved. Commands that were on their way are lost, and the ring is down.
    Generation = 0x34, "GENERATION", Read;
    /// Commands that can be submitted at once before the device says "rate-limited".
    Credit = 0x38, "CREDIT", Read;
    /// A number that the VMM notes with its time, for tracing a boot: 1 is init's start, 2 user space ready, from 16 on they are the guest's own. Other numbers are dropped.
    Mark = 0x3c, "MARK", Write;
}

/// Marks with a meaning of their own.
pub mod mark {
    /// The first process runs.
    pub const INIT: u32 = 1;
    /// User space is up.
    pub const USER_SPACE: u32 = 2;
    /// The first number that is the guest's own.
    pub const FIRST_OWN: u32 = 16;
}

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal, $label:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: u32 = 1 << $bit;)+
        /// Bit, name and meaning of each feature.
        pub const FEATURES: &[(u32, &str, &str)] = &[$(($bit, $label, concat!($($doc),+))),+];
    };
}

/// The bits of [`Register::Features`].
pub mod feature {
    features! {
        /// Operations on virtual endpoints.
        ENDPOINTS = 0, "endpoints";
        /// A VM can be moved to another host.
        MIGRATE = 1, "migrate";
        /// Operations on other VMs.
        BOOT = 2, "boot";
        /// Image data can be fetched.
        IMAGES = 3, "images";
        /// There is an event ring.
        EVENTS = 4, "events";
        /// Events are announced on a second serial line, a byte each time.
        EVENT_LINE = 5, "event-line";
    }
}
