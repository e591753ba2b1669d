//! Traces of boots: a file of JSON lines, one for each phase of each VM and one for the whole, in the
//! words of OpenTelemetry.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use imgcache::image::name::ImageName;
use serde::Serialize;

use crate::api::VmInfo;
use crate::spec::name::TenantName;

/// Writes traces.
#[derive(Debug)]
pub struct Tracer {
    file: File,
    next: u64,
    /// What makes numbers of this agent differ from those of others.
    salt: u64,
}

/// A span: something that took a while.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are OpenTelemetry's names")]
struct Span<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    name: &'a str,
    start_time_unix_nano: u64,
    end_time_unix_nano: u64,
    duration_ms: f64,
    attributes: Attributes<'a>,
    status: Status<'a>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Attributes<'a> {
    #[serde(rename = "service.name")]
    service: &'static str,
    #[serde(rename = "vm.name", skip_serializing_if = "Option::is_none")]
    vm: Option<&'a str>,
    #[serde(rename = "vm.number", skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(rename = "image.name")]
    image: &'a str,
    #[serde(rename = "image.manifest", skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a str>,
    #[serde(rename = "image.bytes", skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    tenant: &'a str,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Status<'a> {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

const OK: Status<'static> = Status { code: "OK", message: None };

impl Tracer {
    /// Appends to `file`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(file: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(file)?;
        let mut salt = [0; 8];
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { file, next: 0, salt: u64::from_ne_bytes(salt) })
    }

    /// A number that no other span has.
    fn id(&mut self) -> u64 {
        self.next += 1;
        // Odd multiples of the golden ratio do not repeat; zero would be no id.
        (self.salt ^ self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)
    }

    fn trace_id(&mut self) -> String {
        let id = self.id();
        format!("{:016x}{id:016x}", self.salt)
    }

    /// The boot of a VM that is ready, or never will be.
    pub fn boot(&mut self, info: &VmInfo) {
        let trace = self.trace_id();
        let root = format!("{:016x}", self.id());
        let begin = info.created_ms.saturating_mul(1_000_000);
        let attributes = Attributes {
            service: "vmm-node",
            vm: Some(info.name.as_str()),
            number: Some(info.number),
            image: info.spec.image.as_str(),
            manifest: info.manifest.as_deref(),
            bytes: None,
            tenant: info.tenant.as_str(),
        };
        let phases: f64 = info.phases.iter().map(|phase| phase.ms).sum();
        let all = info.ready_ms.unwrap_or(phases);
        let failed = info.end.as_ref().filter(|_| info.ready_ms.is_none());
        let status = failed.map_or(OK, |end| Status { code: "ERROR", message: Some(&end.reason) });
        let mut lines = Vec::new();
        let mut spans = vec![(root.clone(), None, "vm.boot", 0.0, all, status)];
        let mut at = 0.0;
        for phase in &info.phases {
            let id = format!("{:016x}", self.id());
            spans.push((id, Some(root.clone()), &phase.name, at, phase.ms, OK));
            at += phase.ms;
        }
        for (span_id, parent_span_id, name, at, duration_ms, status) in spans {
            let start = begin.saturating_add(nanoseconds(at));
            let span = Span {
                trace_id: trace.clone(),
                span_id,
                parent_span_id,
                name,
                start_time_unix_nano: start,
                end_time_unix_nano: start.saturating_add(nanoseconds(duration_ms)),
                duration_ms,
                attributes,
                status,
            };
            add(&mut lines, &span);
        }
        self.write(&lines);
    }

    /// An image was brought into the pool, which ended at `at_ms` and took `ms` milliseconds.
    pub fn pull(
        &mut self,
        at_ms: u64,
        ms: f64,
        image: &ImageName,
        tenant: &TenantName,
        bytes: u64,
    ) {
        let end = at_ms.saturating_mul(1_000_000);
        let span = Span {
            trace_id: self.trace_id(),
            span_id: format!("{:016x}", self.id()),
            parent_span_id: None,
            name: "image.pull",
            start_time_unix_nano: end.saturating_sub(nanoseconds(ms)),
            end_time_unix_nano: end,
            duration_ms: ms,
            attributes: Attributes {
                service: "vmm-node",
                vm: None,
                number: None,
                image: image.as_str(),
                manifest: None,
                bytes: Some(bytes),
                tenant: tenant.as_str(),
            },
            status: OK,
        };
        let mut lines = Vec::new();
        add(&mut lines, &span);
        self.write(&lines);
    }

    fn write(&mut self, lines: &[u8]) {
        if let Err(error) = self.file.write_all(lines) {
            tracing::warn!("a trace is lost: {error}");
        }
    }
}

fn add(lines: &mut Vec<u8>, span: &Span<'_>) {
    // It has nothing that JSON has not.
    let _ = serde_json::to_writer(&mut *lines, span);
    lines.push(b'\n');
}

/// Milliseconds as whole nanoseconds.
fn nanoseconds(ms: f64) -> u64 {
    let duration = std::time::Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Phase, VmState};

    #[test]
    fn each_phase_is_a_line_under_that_of_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let phase = |name: &str, ms| Phase { name: name.into(), ms };
        let info = VmInfo {
            number: 7,
            name: "web".parse().unwrap(),
            tenant: TenantName::default(),
            state: VmState::Ready,
            spec: serde_json::from_str(r#"{"image":"debian:12"}"#).unwrap(),
            manifest: Some("ab".into()),
            pid: None,
            network: None,
            created_ms: 1000,
            phases: vec![phase("pool", 1.5), phase("exec", 2.0)],
            ready_ms: Some(4.0),
            end: None,
        };
        Tracer::open(&path).unwrap().boot(&info);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["name"], "vm.boot");
        assert_eq!(lines[2]["name"], "exec");
        assert_eq!(lines[2]["parent_span_id"], lines[0]["span_id"]);
        assert_eq!(lines[2]["trace_id"], lines[0]["trace_id"]);
        assert_eq!(lines[2]["start_time_unix_nano"], 1_001_500_000);
        assert_eq!(lines[2]["end_time_unix_nano"], 1_003_500_000);
        assert_eq!(lines[2]["attributes"]["vm.name"], "web");
        assert_eq!(lines[2]["attributes"]["image.name"], "debian:12");
        assert_eq!(lines[0]["trace_id"].as_str().unwrap().len(), 32);
    }
}
