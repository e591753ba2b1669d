//! Metrics in the format of `OpenMetrics`, taken from the counters when they are asked for.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Shared;
use super::http::Opening;
use crate::node::cache::{Counters, Now, PerKind};

/// All metrics as text.
///
/// # Errors
/// If they cannot be written, which they always can.
pub(super) fn encode(shared: &Arc<Shared>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("imgcached");
    registry.register_collector(Box::new(Snapshot(shared.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The metrics of a node that is still opening its memory.
///
/// # Errors
/// If they cannot be written, which they always can.
pub(super) fn encode_opening(opening: &Arc<Opening>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("imgcached");
    registry.register_collector(Box::new(Progress(opening.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Progress(Arc<Opening>);

impl Collector for Progress {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (done, all) = self.0.get();
        let help = "What the file holds, in entries: looked at, and all; of the step that goes on";
        Writer(encoder).gauges("opening", help, None, "entries", [("done", done), ("all", all)])
    }
}

#[derive(Debug)]
struct Snapshot(Arc<Shared>);

/// Writes families of metrics.
struct Writer<'a>(DescriptorEncoder<'a>);

type Label<'a> = [(&'static str, &'a str); 1];

impl Writer<'_> {
    fn family<'l, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metrics: impl IntoIterator<Item = (Label<'l>, M)>,
    ) -> fmt::Result {
        let mut metrics = metrics.into_iter().peekable();
        let Some((_, first)) = metrics.peek() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, unit, first.metric_type())?;
        for (label, metric) in metrics {
            metric.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let metrics =
            values.into_iter().map(|(of, value)| ([(label, of)], ConstCounter::new(value)));
        self.family(name, help, None, metrics)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &'static str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let metrics =
            values.into_iter().map(|(of, value)| ([(label, of)], ConstGauge::new(signed(value))));
        self.family(name, help, unit, metrics)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(signed(value));
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn by_kind(values: &PerKind) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    values.named()
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let all = self.0.cache.counters();
        self.server(&mut writer)?;
        self.pushes(&mut writer)?;
        cache_counts(&mut writer, &all)?;
        cache_state(&mut writer, &all)?;
        self.classes(&mut writer)
    }
}

impl Snapshot {
    fn server(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let shared = &self.0;
        let counts = shared.counters.snapshot();
        let bytes = Some(&Unit::Bytes);
        writer.counters("requests", "Requests", "command", counts.by_command())?;
        writer.counters("errors", "What went wrong, by kind", "kind", counts.by_error())?;
        writer.counter("received", "Bytes received", bytes, counts.bytes_read)?;
        writer.counter("sent", "Bytes sent", bytes, counts.bytes_written)?;
        writer.counter("connections_opened", "Connections accepted", None, counts.connections)?;
        writer.counter(
            "connection_yields",
            "Times that a connection let others go on",
            None,
            counts.yields,
        )?;
        writer.counter("idle_kicks", "Idle connections closed", None, counts.idle_kicks)?;
        let connections = shared.connections.count() as u64;
        writer.gauge("connections", "Connections now", None, connections)?;
        let limit = shared.config.max_connections as u64;
        writer.gauge("connections_limit", "Connections that there may be", None, limit)
    }

    fn pushes(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let Ok(push) = &self.0.push else { return Ok(()) };
        let all = push.counters().named();
        let of = |wanted: &str| all.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, n)| *n);
        writer.gauge("pushes", "Pushes by RDMA that are open", None, of("open"))?;
        let bytes = Some(&Unit::Bytes);
        let help = "Bytes of memory that clients may be writing to by RDMA";
        writer.gauge("pushes_exposed", help, bytes, of("exposed"))?;
        writer.counter("pushes_begun", "Pushes by RDMA that were begun", None, of("begun"))?;
        let help = "Bytes that came by RDMA WRITE and were published";
        writer.counter("pushed", help, bytes, of("stored_bytes"))?;
        let results =
            ["stored", "kept", "full", "damaged", "failed", "expired", "abandoned", "lost"];
        let results = results.map(|result| (result, of(result)));
        writer.counters("pushed_chunks", "Chunks to be pushed by RDMA", "result", results)
    }

    fn classes(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let classes = self.0.cache.class_stats(Now::system());
        let sizes: Vec<String> = classes.iter().map(|class| class.slot_bytes.to_string()).collect();
        let by_class = || sizes.iter().map(String::as_str).zip(&classes);
        let bytes = Some(&Unit::Bytes);
        writer.gauges(
            "class_slots",
            "Bytes of slots in use, by the size of a slot",
            bytes,
            "slot",
            by_class().map(|(size, class)| (size, class.used_slots * class.slot_bytes)),
        )?;
        writer.gauges(
            "class_content",
            "Bytes of content, by the size of a slot",
            bytes,
            "slot",
            by_class().map(|(size, class)| (size, class.content_bytes)),
        )?;
        writer.counters(
            "class_evictions",
            "Items evicted, by the size of a slot",
            "slot",
            by_class().map(|(size, class)| (size, class.evicted)),
        )
    }
}

fn cache_counts(writer: &mut Writer<'_>, all: &Counters) -> fmt::Result {
    let counts = &all.counts;
    let bytes = Some(&Unit::Bytes);
    writer.counters("hits", "Gets that found an item", "kind", by_kind(&counts.hits))?;
    writer.counters("misses", "Gets that found none", "kind", by_kind(&counts.misses))?;
    writer.counters("hit_content", "Bytes of items found", "kind", by_kind(&counts.hit_bytes))?;
    writer.counters("stored", "Items stored", "kind", by_kind(&counts.stored))?;
    let stored = by_kind(&counts.stored_bytes);
    writer.counters("stored_content", "Bytes of items stored", "kind", stored)?;
    writer.counters("evicted", "Items evicted", "kind", by_kind(&counts.evicted))?;
    let evictions = [("memory", counts.evictions), ("index", counts.table_evictions)];
    writer.counters("evictions", "Items evicted, by what was full", "full", evictions)?;
    writer.counter(
        "evicted_age",
        "Sum over evicted items of the time since they were stored",
        Some(&Unit::Seconds),
        counts.evicted_age_seconds,
    )?;
    writer.gauge(
        "last_eviction_age",
        "Time since the item evicted last was stored",
        Some(&Unit::Seconds),
        counts.last_eviction_age.into(),
    )?;
    writer.counter("reclaimed", "Expired items removed", None, counts.reclaimed)?;
    let refused = [
        ("memory", counts.out_of_memory),
        ("quarantine", counts.quarantine_refusals),
        ("reserved", counts.reservations_refused),
        ("index", counts.table_full),
        ("hash", counts.hash_mismatches),
    ];
    writer.counters("stores_refused", "Stores refused, by reason", "reason", refused)?;
    let leases = [
        ("granted", counts.leases_granted),
        ("refused", counts.leases_refused),
        ("released", counts.leases_released),
        ("expired", counts.leases_expired),
    ];
    writer.counters("lease_events", "What became of leases", "event", leases)?;
    let read = counts.leased_bytes_read;
    writer.counter("leased_read", "Bytes read under leases, as clients say", bytes, read)
}

fn cache_state(writer: &mut Writer<'_>, all: &Counters) -> fmt::Result {
    let bytes = Some(&Unit::Bytes);
    writer.gauges("items", "Items now", None, "kind", by_kind(&all.items_by_kind))?;
    writer.gauges("content", "Bytes of content", bytes, "kind", by_kind(&all.content_bytes))?;
    let memory = [
        ("capacity", all.capacity),
        ("used", all.used),
        ("leased", all.leased),
        ("pinned", all.pinned),
        ("quarantined", all.quarantined),
        ("reserved", all.reserved),
        ("overhead", all.overhead_bytes),
    ];
    writer.gauges("memory", "Bytes of memory, by what holds them", bytes, "of", memory)?;
    let help = "Slots left alone because somebody may still be writing into them from afar";
    writer.gauge("parked_slots", help, None, all.parked)?;
    writer.gauge("leases", "Leases now", None, all.leases)?;
    let help = "Leases that ended and on whose memory somebody still has rights";
    writer.gauge("leases_closing", help, None, all.closing_leases)?;
    writer.gauge("pins", "Images pinned now", None, all.pins)?;
    writer.gauge("index_entries_used", "Index entries in use", None, all.table_used)?;
    writer.gauge("index_entries", "Index entries", None, all.table_entries)?;
    writer.gauge("slabs_free", "Slabs of no size class", None, all.free_slabs)?;
    writer.gauge("slabs", "Slabs", None, all.slabs)?;
    let found = [
        ("whole", all.restored),
        ("damaged", all.dropped_damaged),
        ("expired", all.dropped_expired),
    ];
    writer.gauges("restored_items", "Items found at the start", None, "state", found)?;
    writer.gauge("draining", "1 while no leases are given", None, all.draining.into())
}
