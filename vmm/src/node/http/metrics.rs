//! Metrics in the format of `OpenMetrics`: some are counted as things happen, the others are taken from
//! the node when they are asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::api::{NodeInfo, NodeUsage, Phase, Usage, VmState};

/// VMs that have metrics of their own, at most; the first by number.
const VMS: usize = 256;
/// Different phases that are told apart, at most: they are words of VMs' processes.
const PHASES: usize = 48;

/// Bounds of times, in seconds: boots take a few milliseconds.
const BOUNDS: [f64; 14] =
    [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    code: String,
}

fn histogram() -> Histogram {
    Histogram::new(BOUNDS)
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted as it happens.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Histograms<RouteLabels>,
    refused: Counter,
    created: Counter,
    ended: Family<EndLabels, Counter>,
    phases: Histograms<PhaseLabels>,
    /// The phases that are told apart.
    known: std::sync::Mutex<Vec<String>>,
    ready: Histogram,
    /// Connections that are open.
    pub connections: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            refused: Counter::default(),
            created: Counter::default(),
            ended: Family::default(),
            phases: Family::new_with_constructor(histogram),
            known: std::sync::Mutex::default(),
            ready: histogram(),
            connections: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// A request was answered. `route` is one of the API's, not the request's own words.
    pub fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        // Methods are anybody's words.
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE"].contains(&method);
        let method = if known { method } else { "other" }.to_owned();
        let route = route.to_owned();
        let labels = RequestLabels { method, route: route.clone(), status };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&RouteLabels { route }).observe(took.as_secs_f64());
    }

    /// A connection was not served, or cut off.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// A VM came to a state.
    pub fn vm(&self, state: VmState, code: Option<u8>) {
        match state {
            VmState::Starting => drop(self.created.inc()),
            VmState::Ended => {
                let code = code.map_or("unknown".to_owned(), |code| code.to_string());
                self.ended.get_or_create(&EndLabels { code }).inc();
            }
            VmState::Ready | VmState::Running => {}
        }
    }

    /// A VM was ready to boot, after so many milliseconds.
    pub fn boot(&self, phases: &[Phase], ready_ms: f64) {
        self.ready.observe(ready_ms / 1e3);
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for phase in phases {
            if !known.contains(&phase.name) && known.len() < PHASES {
                known.push(phase.name.clone());
            }
            let name = if known.contains(&phase.name) { &phase.name } else { "other" };
            let labels = PhaseLabels { phase: name.to_owned() };
            self.phases.get_or_create(&labels).observe(phase.ms / 1e3);
        }
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// If they cannot be written, which they always can.
    pub fn encode(
        &self,
        node: NodeInfo,
        usage: Arc<NodeUsage>,
        endpoints: Vec<(&'static str, u64)>,
    ) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("vmm_node");
        let all = &mut registry;
        let seconds = Unit::Seconds;
        all.register("requests", "Requests by route and status", self.requests.clone());
        all.register_with_unit(
            "request_duration",
            "Time until the answer began",
            seconds.clone(),
            self.durations.clone(),
        );
        all.register("cut_connections", "Connections cut off", self.refused.clone());
        all.register("vms_created", "VMs created", self.created.clone());
        all.register("vms_ended", "VMs ended, by exit code", self.ended.clone());
        let phases = self.phases.clone();
        all.register_with_unit("boot_phase", "Phases of boots", seconds.clone(), phases);
        let ready = self.ready.clone();
        all.register_with_unit("boot_ready", "From creation until ready to boot", seconds, ready);
        let connections = self.connections.load(std::sync::atomic::Ordering::Relaxed);
        registry.register_collector(Box::new(Snapshot { node, usage, connections }));
        let mut moving = Registry::with_prefix("vmm_endpoint");
        moving.register_collector(Box::new(EndpointCounts(endpoints)));
        let mut text = String::new();
        encode_registry(&mut text, &registry)?;
        encode_registry(&mut text, &moving)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// What the node's endpoints count.
#[derive(Debug)]
struct EndpointCounts(Vec<(&'static str, u64)>);

/// What a counter of the endpoints counts.
fn endpoint_help(name: &str) -> &'static str {
    match name {
        "calls" => "What guests asked for",
        "calls_refused" => "What guests asked for and did not get",
        "moves" => "Moves of endpoints that came to their end",
        "moves_aborted" => "Moves that went back",
        "moves_orphaned" => "Moves after which nobody keeps the endpoint alive",
        "frozen" => "Endpoints frozen because they moved too often",
        "held_microseconds" => "For how long moves held frames, in microseconds",
        "state_bytes" => "State that moves took along, in bytes",
        "frames_held" => "Frames held for endpoints that moved",
        "frames_overflow" => "Frames dropped because too many were held",
        "frames_muted" => "Frames of guests in the name of an endpoint that was not open",
        "frames_unknown" => "Frames to identifiers that the VM has not",
        _ => "A count of the node's endpoints",
    }
}

impl Collector for EndpointCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        for (name, value) in &self.0 {
            // The format puts it behind the name of any counter.
            let name = name.strip_suffix("_total").unwrap_or(name);
            writer.counter(name, endpoint_help(name), None, *value)?;
        }
        Ok(())
    }
}

/// What is taken from the node.
#[derive(Debug)]
struct Snapshot {
    node: NodeInfo,
    usage: Arc<NodeUsage>,
    connections: u64,
}

struct Writer<'a>(DescriptorEncoder<'a>);

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(signed(value));
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            ConstGauge::new(signed(value)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let node = &self.node;
        let bytes = Some(&Unit::Bytes);
        let states = [
            ("starting", node.vms.starting),
            ("ready", node.vms.ready),
            ("running", node.vms.running),
            ("ended", node.vms.ended),
        ];
        let states = states.map(|(state, count)| ([("state", state.to_owned())], count.into()));
        writer.gauges("vms", "VMs by state", None, states)?;
        writer.gauge("vms_limit", "VMs that may live at a time", None, node.max_vms.into())?;
        writer.gauge("vm_memory", "RAM of living VMs, used or not", bytes, node.vm_memory_bytes)?;
        writer.gauge("memory", "Memory of the host", bytes, node.memory_bytes)?;
        let available = node.memory_available_bytes;
        writer.gauge("memory_available", "Memory of it that is available", bytes, available)?;
        writer.gauge("draining", "Whether no new VMs are taken", None, node.draining.into())?;
        writer.gauge("connections", "Connections to the API", None, self.connections)?;
        let pool = &node.pool;
        writer.gauge("pool_used", "Memory that images take", bytes, pool.bytes)?;
        writer.gauge("pool_limit", "Memory that they may take", bytes, pool.limit_bytes)?;
        writer.gauge("pool_images", "Images in the pool", None, pool.images.into())?;
        writer.counter("pool_hits", "VMs that found their image there", None, pool.hits)?;
        writer.counter("pool_misses", "Images that had to be brought", None, pool.misses)?;
        writer.counter("pool_evictions", "Images given up for others", None, pool.evictions)?;
        writer.counter("pool_loaded", "What was brought", bytes, pool.bytes_loaded)?;
        self.memory(&mut writer)
    }
}

impl Snapshot {
    fn memory(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let agent = self.usage.agent.proportional_bytes;
        writer.gauge("agent_memory", "Memory of the agent (PSS)", bytes, agent)?;
        let parts = |usage: &Usage| {
            [
                ("shared", usage.shared_bytes),
                ("private", usage.private_bytes),
                ("proportional", usage.proportional_bytes),
            ]
        };
        let of_vms = || self.usage.vms.iter().filter_map(|vm| Some((&vm.name, vm.usage.as_ref()?)));
        let mut all = [("shared", 0u64), ("private", 0), ("proportional", 0)];
        for (_, usage) in of_vms() {
            for ((_, sum), (_, value)) in all.iter_mut().zip(parts(usage)) {
                *sum = sum.saturating_add(value);
            }
        }
        let all = all.map(|(kind, sum)| ([("kind", kind.to_owned())], sum));
        writer.gauges("vms_resident", "Memory of all VMs' processes", bytes, all)?;
        let each = of_vms().take(VMS).flat_map(|(name, usage)| {
            let labels = |kind: &str| [("vm", name.to_string()), ("kind", kind.to_owned())];
            parts(usage).map(|(kind, value)| (labels(kind), value))
        });
        writer.gauges("vm_resident", "Memory of a VM's process", bytes, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_endpoints_are_counters_of_their_own_name() {
        let mut registry = Registry::with_prefix("vmm_endpoint");
        registry.register_collector(Box::new(EndpointCounts(vec![("moves_total", 3)])));
        let mut text = String::new();
        encode_registry(&mut text, &registry).unwrap();
        assert!(text.contains("\nvmm_endpoint_moves_total 3\n"), "{text}");
        assert!(text.contains("# TYPE vmm_endpoint_moves counter\n"), "{text}");
    }

    #[test]
    fn words_of_others_do_not_make_metrics_without_bound() {
        let metrics = Metrics::default();
        for number in 0..1000 {
            metrics.boot(&[Phase { name: format!("phase-{number}"), ms: 1.0 }], 2.0);
            metrics.request(&format!("M{number}"), "/v1/vms", 405, Duration::ZERO);
        }
        let mut registry = Registry::default();
        registry.register("phases", "p", metrics.phases.clone());
        registry.register("requests", "r", metrics.requests.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines = |what: &str| text.lines().filter(|line| line.starts_with(what)).count();
        assert_eq!(lines("phases_count"), PHASES + 1);
        assert_eq!(lines("requests_total"), 1);
    }
}
