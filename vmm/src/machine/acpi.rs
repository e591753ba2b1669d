//! The machine's ACPI tables: how the guest finds processors, interrupts, devices and power.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no fixed-hardware timer, no legacy interrupt
//! controller, no system management mode. Power-off is the sleep control register, reset the reset
//! register; devices are those of the DSDT.

use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use devices::virtio::mmio;
use devices::{ioapic, power, pvpanic, serial, vmgenid};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

const OEM_ID: [u8; 6] = *b"MICROV";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVMM";
const OEM_REVISION: u32 = 1;

/// FADT boot architecture flags (ACPI 6.5, table 5.10): what a PC would have and this has not.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// A virtio device's window and interrupt.
#[derive(Debug, Clone, Copy)]
pub struct VirtioWindow {
    /// First guest-physical address.
    pub base: u64,
    /// Interrupt line.
    pub gsi: u32,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They do not fit where they belong.
    #[error("ACPI tables end at {end:#x}, beyond the {limit:#x} that is kept for them")]
    TooLarge {
        /// Where they would end.
        end: u64,
        /// Where they must.
        limit: u64,
    },
    /// Guest memory refused them; never for a machine's own layout.
    #[error("ACPI tables: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Collects a table's bytes.
#[derive(Default)]
struct Bytecode(Vec<u8>);

impl AmlSink for Bytecode {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytecode(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytecode::default();
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// Writes all tables for `cpus` processors; returns the address of the root pointer.
///
/// # Errors
/// More devices than the tables have room for.
pub fn write_tables(
    memory: &GuestMemoryMmap<()>,
    cpus: u8,
    virtio: &[VirtioWindow],
) -> Result<u64, AcpiError> {
    let rsdp_address = layout::ACPI_TABLES.start;
    let mut next = rsdp_address + align(Rsdp::len() as u64);
    let mut place = |table: &[u8]| -> Result<u64, AcpiError> {
        let address = next;
        let end = address + align(table.len() as u64);
        if end > layout::ACPI_TABLES.end {
            return Err(AcpiError::TooLarge { end, limit: layout::ACPI_TABLES.end });
        }
        memory.write_slice(table, GuestAddress(address))?;
        next = end;
        Ok(address)
    };
    let dsdt = place(dsdt(virtio).as_slice())?;
    let fadt = place(&bytecode(&fadt(dsdt)))?;
    let madt = place(&bytecode(&madt(cpus)))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytecode(&xsdt))?;
    memory.write_slice(&bytecode(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(rsdp_address))?;
    Ok(rsdp_address)
}

fn align(length: u64) -> u64 {
    length.next_multiple_of(16)
}

fn power_register(offset: u64) -> GAS {
    let address = layout::POWER_PORTS + offset;
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = power_register(power::RESET_OFFSET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = power_register(power::SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = power_register(power::SLEEP_STATUS_OFFSET);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, low_half(ioapic::IOAPIC_BASE), 0));
    madt
}

fn dsdt(virtio: &[VirtioWindow]) -> Sdt {
    const HEADER: u32 = 36;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytecode(&sleep_state_s5()));
    dsdt.append_slice(&serial_port("_SB_.COM1", 0, serial::COM1_IRQ, serial::COM1_BASE));
    dsdt.append_slice(&serial_port("_SB_.COM2", 1, serial::COM2_IRQ, serial::COM2_BASE));
    dsdt.append_slice(&pvpanic());
    dsdt.append_slice(&control());
    dsdt.append_slice(&generation());
    dsdt.append_slice(&event_device());
    for (index, window) in virtio.iter().enumerate() {
        dsdt.append_slice(&virtio_device(index, *window));
    }
    dsdt
}

/// `_S5` (ACPI 6.5, section 7.4.2): the value that means power-off.
fn sleep_state_s5() -> impl Aml {
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&power::S5_SLEEP_TYPE]))
}

/// The line is edge-triggered and active high, as all of this machine's are.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn ports(base: u64, count: u64) -> aml::IO {
    let base = u16::try_from(base).unwrap_or(u16::MAX);
    aml::IO::new(base, base, 1, u8::try_from(count).unwrap_or(u8::MAX))
}

/// An address below 4 GiB, as all device addresses of this machine are.
fn low_half(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

fn serial_port(path: &str, index: u8, irq: u32, base: u64) -> Vec<u8> {
    bytecode(&aml::Device::new(
        path.into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &interrupt(irq),
                    &ports(base, serial::COM1_LENGTH),
                ]),
            ),
        ],
    ))
}

fn pvpanic() -> Vec<u8> {
    bytecode(&aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &pvpanic::PVPANIC_ACPI_ID),
            &aml::Name::new("_STA".into(), &0x0bu8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&ports(
                    pvpanic::PVPANIC_PORT,
                    pvpanic::PVPANIC_LENGTH,
                )]),
            ),
        ],
    ))
}

/// The control device: nothing to drive it with is in a kernel, so that this reserves its addresses and
/// lets programs find it.
fn control() -> Vec<u8> {
    use control_abi::register;
    bytecode(&aml::Device::new(
        "_SB_.VMMD".into(),
        vec![
            &aml::Name::new("_HID".into(), &register::ACPI_ID),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_STA".into(), &0x0fu8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &ports(register::PORT_BASE.into(), register::WINDOW_BYTES.into()),
                    &aml::Memory32Fixed::new(
                        true,
                        low_half(layout::CONTROL_MMIO),
                        low_half(register::MMIO_BYTES),
                    ),
                ]),
            ),
        ],
    ))
}

/// The identifier of the machine's generation: where it is, and by which name it is known.
fn generation() -> Vec<u8> {
    let zero = aml::ZERO;
    bytecode(&aml::Device::new(
        GENERATION.into(),
        vec![
            &aml::Name::new("_HID".into(), &vmgenid::ACPI_ID),
            &aml::Name::new("_CID".into(), &vmgenid::COMPATIBLE_ID),
            &aml::Name::new("_DDN".into(), &vmgenid::COMPATIBLE_ID),
            &aml::Name::new("_STA".into(), &0x0fu8),
            &aml::Name::new(
                "ADDR".into(),
                &aml::Package::new(vec![&low_half(layout::GENERATION_ID), &zero]),
            ),
        ],
    ))
}

const GENERATION: &str = "_SB_.VGEN";

/// The generic event device (ACPI 6.5, section 5.6.9): turns an interrupt into a notification, since a
/// machine of this kind has no general-purpose events.
fn event_device() -> Vec<u8> {
    let path = aml::Path::new(GENERATION);
    bytecode(&aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&interrupt(layout::GENERATION_GSI)]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &layout::GENERATION_GSI),
                    vec![&aml::Notify::new(&path, &vmgenid::NOTIFICATION)],
                )],
            ),
        ],
    ))
}

/// A virtio MMIO device, by the identifier that Linux' `virtio_mmio` knows.
fn virtio_device(index: usize, window: VirtioWindow) -> Vec<u8> {
    bytecode(&aml::Device::new(
        format!("_SB_.VR{index:02X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(
                        true,
                        low_half(window.base),
                        low_half(mmio::MMIO_LENGTH),
                    ),
                    &interrupt(window.gsi),
                ]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    fn table(memory: &GuestMemoryMmap<()>, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    #[test]
    fn every_table_is_reached_from_the_root_and_sums_to_zero() {
        let memory = memory();
        let virtio = [VirtioWindow { base: layout::VIRTIO_MMIO.start, gsi: layout::VIRTIO_GSI }];
        let rsdp = write_tables(&memory, 3, &virtio).unwrap();
        let mut signature = [0u8; 8];
        memory.read_slice(&mut signature, GuestAddress(rsdp)).unwrap();
        assert_eq!(&signature, b"RSD PTR ");
        let xsdt_address: u64 = memory.read_obj(GuestAddress(rsdp + 24)).unwrap();
        let xsdt = table(&memory, xsdt_address);
        let mut seen = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let table = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            seen.push(table[..4].to_vec());
        }
        assert_eq!(seen, [b"FACP".to_vec(), b"APIC".to_vec()]);
    }

    #[test]
    fn the_madt_lists_each_processor_once() {
        let table = bytecode(&madt(32));
        let processors = table[44..].chunks(8).filter(|entry| entry[..2] == [0, 8]).count();
        assert_eq!(processors, 32);
    }

    #[test]
    fn the_fadt_has_no_legacy_devices_and_both_power_registers() {
        let table = bytecode(&fadt(0x1000));
        let flags = u32::from_le_bytes(table[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let reset = u64::from_le_bytes(table[120..128].try_into().unwrap());
        assert_eq!(reset, layout::POWER_PORTS + power::RESET_OFFSET);
    }
}
