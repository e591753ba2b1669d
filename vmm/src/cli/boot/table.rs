//! What `vmm boot` says to people.

use devices::virtio::net::counters::Counts;
use imgcache::client::Verification;
use imgcache::transport::cluster::CacheReport;

use crate::boot::report::Report;
use crate::disk::DiskReport;
use crate::machine::settle::Settled;
use crate::net::Network;
use crate::size;

/// One line before the guest has the console.
pub fn announcement(report: &Report) -> String {
    format!(
        "vmm: {} is ready after {:.1} ms, with {} in {}; Ctrl-A ? helps\n",
        report.image,
        report.ready_ms,
        size::show(report.memory_bytes),
        report.memory_backing
    )
}

/// The report for people.
pub fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:<12} {:>10}   RAM in {}; {} fetched, {} mapped, {} zero; verified by {}",
        "phase",
        "ms",
        report.memory_backing,
        size::show(report.load.bytes_fetched),
        size::show(report.load.bytes_mapped),
        size::show(report.load.bytes_zero),
        match report.load.verify {
            Verification::Checksum => "checksum",
            Verification::Full => "BLAKE3",
            Verification::Prepared => "the pool",
        }
    )];
    let row = |name: &str, ms: f64| format!("{name:<12} {ms:>10.3}");
    lines.extend(report.phases.iter().map(|phase| row(phase.name, phase.ms)));
    lines.push(row("ready", report.ready_ms));
    lines.extend(report.network.as_ref().map(address_line));
    lines.extend(report.load.cache.iter().flat_map(cache_lines));
    if let Some(guest) = &report.guest {
        lines.push(row("kernel entry", 0.0) + "   (and from here on, times of the guest's own)");
        lines.extend(guest.said.marks.iter().map(|mark| row(&mark.name, mark.ms)));
        lines.extend(guest.said.ready_ms.map(|ms| row("guest ready", ms)));
        lines.push(row("guest", guest.run_ms));
        lines.push(format!(
            "exits {} (ports {}, MMIO {}, halts {}), stage-2 pages: {} x 2 MiB, {} x 4 KiB",
            guest.kvm.exits,
            guest.kvm.io_exits,
            guest.kvm.mmio_exits,
            guest.kvm.halt_exits,
            guest.kvm.pages_2m,
            guest.kvm.pages_4k
        ));
        lines.extend(guest.settled.as_ref().map(settled_line));
        lines.extend(guest.disk.as_ref().map(disk_line));
        lines.extend(guest.network.as_ref().map(network_line));
    }
    lines.join("\n") + "\n"
}

fn address_line(network: &Network) -> String {
    let ip = network.ip.map(|ip| format!(", {ip}")).unwrap_or_default();
    let on = network.bridge.as_ref().map(|bridge| format!(" on {bridge}")).unwrap_or_default();
    format!("network      {}{ip} at {}{on}", network.device.mac, network.tap)
}

fn network_line(counts: &Counts) -> String {
    format!(
        "network received {} frames of {}, sent {} of {}; dropped {} and {}, kept back {} and {}, spoofed {}",
        counts.received_frames,
        size::show(counts.received_bytes),
        counts.sent_frames,
        size::show(counts.sent_bytes),
        counts.received_dropped,
        counts.sent_dropped,
        counts.received_filtered,
        counts.sent_filtered,
        counts.sent_spoofed
    )
}

fn disk_line(disk: &DiskReport) -> String {
    format!(
        "disk: {} read, {} written; {} chunks ({}) brought, {} of them ahead; {} in the overlay, {} \
         errors",
        size::show(disk.bytes_read),
        size::show(disk.bytes_written),
        disk.chunks_fetched,
        size::show(disk.bytes_fetched),
        disk.chunks_ahead,
        size::show(disk.overlay_bytes),
        disk.errors
    )
}

fn settled_line(settled: &Settled) -> String {
    let when = settled.settled_ms.map_or("not all".to_owned(), |ms| format!("after {ms:.3} ms"));
    format!(
        "settled {} of {} mapped, {when}; paused {:.3} ms, at most {:.3} at once; {} written before",
        size::show(settled.settled_bytes),
        size::show(settled.mapped_bytes),
        settled.paused_ms,
        settled.longest_pause_ms,
        size::show(settled.written_bytes)
    )
}

/// What the nodes of the cache did, for people.
fn cache_lines(cache: &CacheReport) -> Vec<String> {
    let mut lines = vec![format!(
        "cache      {} chunks from nodes, {} from the origin; each took {:.2} ms (p50), {:.2} ms \
         (p99)",
        cache.chunks_from_nodes, cache.chunks_from_origin, cache.chunk_ms_p50, cache.chunk_ms_p99
    )];
    if cache.retries > 0 {
        lines.push(format!(
            "           {} missed, {} damaged, {} asked for again, {} of them of another node",
            cache.misses, cache.damaged, cache.retries, cache.replica_switches
        ));
    }
    lines.extend(cache.nodes.iter().map(|node| {
        let failed = match &node.last_failure {
            Some(words) => format!("; failed {} times: {words}", node.failures),
            None => String::new(),
        };
        let why = node.link_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let by: Vec<String> =
            node.by.named().map(|(kind, count)| format!("{count} by {kind}")).collect();
        let over = node.device.as_ref().map(|name| format!(" over {name}")).unwrap_or_default();
        format!(
            "  node     {}: {} chunks, {}: {}{over}{why}{failed}",
            node.name,
            node.chunks,
            size::show(node.bytes),
            by.join(", ")
        )
    }));
    lines
}
