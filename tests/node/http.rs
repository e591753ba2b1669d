//! The API under clients that are wrong, greedy, slow, or many.

use std::io::{Read, Write};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::agent::{Agent, answer};

#[test]
fn errors_say_what_is_wrong_and_where() {
    let agent = Agent::start(&[]);
    let json = "content-type: application/json\r\n";
    let spec = r#"{"spec":{"image":"small"#;
    let cases: [(&str, &str, &str, String, u16, &str, &str); 17] = [
        ("GET", "/", "", String::new(), 404, "not_found", "openapi.json"),
        ("GET", "/v1/vms/none", "", String::new(), 404, "not_found", "'none'"),
        ("GET", "/v1/vms/%2e%2e%2fx", "", String::new(), 400, "bad_request", "is no name"),
        ("GET", "/v1/vms?x=1", "", String::new(), 400, "bad_request", "unknown field `x`"),
        ("GET", "/v1/vms/a/wait?state=up", "", String::new(), 400, "bad_request", "`up`"),
        (
            "GET",
            "/v1/vms/a/wait?timeout_ms=9999999",
            "",
            String::new(),
            400,
            "bad_request",
            "600000",
        ),
        ("PUT", "/v1/vms", "", String::new(), 405, "method", "allow"),
        ("TRACE", "/v1/node", "", String::new(), 405, "method", "allow"),
        ("POST", "/v1/vms", "", "{}".into(), 415, "media_type", "application/json"),
        ("POST", "/v1/vms", "content-type: text/plain\r\n", "{}".into(), 415, "media_type", "json"),
        ("POST", "/v1/vms", json, "{".into(), 400, "bad_request", "EOF"),
        ("POST", "/v1/vms", json, "{}".into(), 400, "bad_request", "missing field `spec`"),
        (
            "POST",
            "/v1/vms",
            json,
            format!(r#"{spec}","cpus":"x"}}}}"#),
            400,
            "bad_request",
            "spec.cpus",
        ),
        ("POST", "/v1/vms", json, format!(r#"{spec}","cpus":33}}}}"#), 422, "invalid", "spec.cpus"),
        ("POST", "/v1/vms", json, format!(r#"{spec}","memory":65}}}}"#), 422, "invalid", "2 MiB"),
        (
            "POST",
            "/v1/vms",
            json,
            format!(r#"{spec}er"}},"hold":true}}"#),
            404,
            "image_not_found",
            "smaller",
        ),
        ("POST", "/v1/vms", json, "x".repeat(1 << 20), 413, "too_large", "262144"),
    ];
    for (method, path, headers, body, status, kind, words) in cases {
        let seen = agent.ask(method, path, headers, body.as_bytes());
        let body = seen.json();
        assert_eq!(seen.status, status, "{method} {path}: {seen:?}");
        assert_eq!(body["kind"], kind, "{method} {path}: {seen:?}");
        assert!(body["message"].as_str().unwrap().contains(words), "{method} {path}: {seen:?}");
        assert!(seen.head.contains("content-type: application/json"), "{seen:?}");
        assert_eq!(status == 405, seen.head.contains("\r\nallow:"), "{seen:?}");
    }
    // Nothing came of any of them.
    assert_eq!(agent.get("/v1/vms").body, "[]");
}

#[test]
fn garbage_and_endless_heads_and_bodies_harm_nobody() {
    let agent = Agent::start(&[]);
    let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20));
    let headers = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(1 << 16));
    let chunks = format!(
        "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{}\r\n", "y".repeat(1 << 16)).repeat(64)
    );
    let noise: Vec<u8> = (0..100_000u32).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
    let heads = [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"\r\n\r\n\r\n", b"GET", b"\0", &noise];
    for text in heads.into_iter().chain([endless.as_bytes(), headers.as_bytes(), chunks.as_bytes()])
    {
        let mut stream = agent.connect();
        let _ = stream.write_all(text);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen);
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.is_empty() || seen.starts_with("HTTP/1.1 4"), "{seen}");
        assert_eq!(agent.get("/v1/health").status, 200);
    }
    // A length is no promise: memory is taken for what comes.
    let huge = "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 99999999999999\r\n\r\n{";
    let mut stream = agent.connect();
    stream.write_all(huge.as_bytes()).unwrap();
    let mut seen = String::new();
    let _ = stream.read_to_string(&mut seen);
    assert!([408, 413].contains(&answer(&seen).status), "{seen}");
}

#[test]
fn slow_clients_are_cut_off_and_meanwhile_nobody_waits_for_them() {
    let agent = Agent::start(&[]);
    let slow: Vec<_> = (0..100)
        .map(|number| {
            let mut stream = agent.connect();
            let text = if number % 2 == 0 {
                "GET /v1/heal"
            } else {
                "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                 content-length: 100\r\n\r\n{"
            };
            stream.write_all(text.as_bytes()).unwrap();
            (number, stream)
        })
        .collect();
    assert_eq!(agent.get("/v1/health").status, 200);
    for (number, mut stream) in slow {
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        match number % 2 {
            0 => assert!(seen.is_empty() || seen.starts_with("HTTP/1.1 408"), "{seen}"),
            _ => assert!(seen.starts_with("HTTP/1.1 408") && seen.contains("slow"), "{seen}"),
        }
    }
    let metrics = agent.get("/metrics").body;
    let cut = metrics.lines().find_map(|line| line.strip_prefix("vmm_node_cut_connections_total "));
    assert!(cut.is_some_and(|cut| cut.parse::<u32>().unwrap() >= 50), "{metrics}");
}

fn allow_many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

#[test]
fn a_thousand_connections_at_once_are_all_served() {
    allow_many_files();
    let agent = Agent::start(&[]);
    let mut all: Vec<_> = (0..1000).map(|_| agent.connect()).collect();
    for stream in &mut all {
        let request = b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
    }
    for mut stream in all {
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        assert_eq!(answer(&seen).status, 200, "{seen}");
    }
    let usage = agent.get("/v1/usage").json();
    let bytes = usage["agent"]["proportional_bytes"].as_u64().unwrap();
    assert!(bytes > 0 && bytes < 30 << 20, "{usage}");
}

#[test]
fn more_idle_connections_than_there_are_places_keep_nobody_out_for_ever() {
    allow_many_files();
    let agent = Agent::start(&[]);
    let idle: Vec<_> = (0..1500).map(|_| agent.connect()).collect();
    assert_eq!(agent.get("/v1/health").status, 200);
    drop(idle);
}
