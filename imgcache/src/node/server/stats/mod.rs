//! `stats`: memcached's names and formats where it has them, the node's own where it does not.

mod images;

use std::fmt::Display;
use std::fs;
use std::hash::BuildHasher;
use std::sync::Mutex;

use super::Shared;
use super::counters::ServerCounts;
use super::execute::Next;
use super::output::Output;
use super::slow::Slow;
use crate::node::cache::{Counts, Now};
use crate::node::rdma::Facts;
use crate::parallel::lock;
use crate::protocol::MAX_PUSH_RECORDS;
use crate::protocol::command::StatsTopic;
use crate::protocol::reply::{line, stat};

/// What `version` answers: the memcached whose protocol this is, and which program it is.
pub(super) const VERSION: &str = concat!("1.6.18-imgcached-", env!("CARGO_PKG_VERSION"));

/// What was counted when `stats reset` was asked last. Metrics are not reset.
#[derive(Debug, Default)]
pub(super) struct Reset(Mutex<(ServerCounts, Counts)>);

/// As many connections or leases as are told at once, without asking for memory.
const FEW: usize = 64;
/// Bytes of text for each connection in `stats conns`, and each lease in `stats leases`; more than
/// they have, but for sockets with long names.
const LINES: usize = 512;

/// `stats`.
pub(super) fn execute(shared: &Shared, topic: StatsTopic, out: &mut Output, now: Now) -> Next {
    let many = match topic {
        StatsTopic::Images => {
            return Next::Slow(Slow::alone(move |shared, out| {
                write(shared, topic, out.text(), now);
            }));
        }
        StatsTopic::Connections => shared.connections.count(),
        StatsTopic::Leases => shared.cache.lease_count(),
        _ => 0,
    };
    if many > FEW {
        let Some(permit) = shared.input_budget.take(many * LINES) else {
            shared.counters.server_errors.add_one();
            line(out.text(), "SERVER_ERROR out of memory for statistics");
            return Next::Done;
        };
        return Next::Slow(Slow::new(move |shared, out| {
            out.keep(permit);
            write(shared, topic, out.text(), now);
        }));
    }
    write(shared, topic, out.text(), now);
    Next::Done
}

/// Writes the reply to `stats`.
fn write(shared: &Shared, topic: StatsTopic, out: &mut Vec<u8>, now: Now) {
    match topic {
        StatsTopic::General => general(shared, out, now),
        StatsTopic::Items => items(shared, out, now),
        StatsTopic::Slabs => slabs(shared, out, now),
        // As memcached answers where it was not told to keep count.
        StatsTopic::Sizes => stat(out, "sizes_status", "disabled"),
        StatsTopic::Settings => settings(shared, out),
        StatsTopic::Connections => connections(shared, out, now),
        StatsTopic::Reset => {
            let counted = (shared.counters.snapshot(), shared.cache.counters().counts);
            *lock(&shared.reset.0) = counted;
            return line(out, "RESET");
        }
        StatsTopic::Images => images::write(shared, out, now),
        StatsTopic::Placement => placement(shared, out),
        StatsTopic::Leases => leases(shared, out, now),
        StatsTopic::Rdma => afar(shared, out),
    }
    line(out, "END");
}

fn flag(value: bool) -> u8 {
    u8::from(value)
}

/// Seconds of processor time of this process, in user space and in the kernel
/// (`proc_pid_stat(5)`, fields 14 and 15).
fn processor_time() -> (String, String) {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, can hold anything.
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |field: usize| {
        let ticks: u64 = behind.split_ascii_whitespace().nth(field - 3)?.parse().ok()?;
        let micros = ticks % per_second * 1_000_000 / per_second;
        Some(format!("{}.{micros:06}", ticks / per_second))
    };
    (time(14).unwrap_or_default(), time(15).unwrap_or_default())
}

fn general(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    let all = shared.cache.counters();
    let (server_base, base) = *lock(&shared.reset.0);
    let server = shared.counters.snapshot().since(&server_base);
    let counts = &all.counts;
    let since = |count: fn(&Counts) -> u64| count(counts).saturating_sub(count(&base));
    let (user, system) = processor_time();
    let hits = since(|counts| counts.hits.total());
    let misses = since(|counts| counts.misses.total());
    let touch_hits = since(|counts| counts.touch_hits);
    let touch_misses = since(|counts| counts.touch_misses);
    let uptime = now.monotonic.saturating_sub(shared.started.monotonic).as_secs();
    let mut put = |name: &str, value: &dyn Display| stat(out, name, value);
    put("pid", &std::process::id());
    put("uptime", &uptime);
    put("time", &now.unix);
    put("version", &VERSION);
    put("pointer_size", &usize::BITS);
    put("rusage_user", &user);
    put("rusage_system", &system);
    put("max_connections", &shared.config.max_connections);
    put("curr_connections", &shared.connections.count());
    put("total_connections", &server.connections);
    put("rejected_connections", &server.refused_connections);
    put("connection_structures", &shared.connections.count());
    put("read_buf_oom", &server.input_out_of_memory);
    put("cmd_get", &(hits + misses));
    put("cmd_set", &server.set);
    put("cmd_flush", &server.flush);
    put("cmd_touch", &(touch_hits + touch_misses));
    put("cmd_meta", &server.meta());
    put("get_hits", &hits);
    put("get_misses", &misses);
    put("get_expired", &since(|counts| counts.get_expired));
    put("get_flushed", &since(|counts| counts.get_flushed));
    put("delete_misses", &since(|counts| counts.delete_misses));
    put("delete_hits", &since(|counts| counts.delete_hits));
    put("incr_misses", &since(|counts| counts.increment_misses));
    put("incr_hits", &since(|counts| counts.increment_hits));
    put("decr_misses", &since(|counts| counts.decrement_misses));
    put("decr_hits", &since(|counts| counts.decrement_hits));
    put("cas_misses", &since(|counts| counts.cas_misses));
    put("cas_hits", &since(|counts| counts.cas_hits));
    put("cas_badval", &since(|counts| counts.cas_mismatches));
    put("touch_hits", &touch_hits);
    put("touch_misses", &touch_misses);
    put("store_too_large", &server.too_large);
    put("store_no_memory", &server.no_memory);
    put("auth_cmds", &0);
    put("auth_errors", &0);
    put("idle_kicks", &server.idle_kicks);
    put("bytes_read", &server.bytes_read);
    put("bytes_written", &server.bytes_written);
    put("limit_maxbytes", &all.capacity);
    put("accepting_conns", &1);
    put("listen_disabled_num", &server.out_of_files);
    put("time_in_listen_disabled_us", &server.out_of_files_us);
    put("threads", &shared.config.threads);
    put("conn_yields", &server.yields);
    put("hash_power_level", &all.table_entries.max(1).ilog2());
    put("hash_bytes", &(all.table_entries * 64));
    put("hash_is_expanding", &0);
    put("slab_reassign_running", &0);
    put("slabs_moved", &since(|counts| counts.slabs_moved));
    put("malloc_fails", &0);
    put("bytes", &all.content_bytes.total());
    put("curr_items", &all.items);
    put("total_items", &since(|counts| counts.stored.total()));
    put("slab_global_page_pool", &all.free_slabs);
    put("expired_unfetched", &since(|counts| counts.expired_unfetched));
    put("evicted_unfetched", &since(|counts| counts.evicted_unfetched));
    put("evictions", &since(|counts| counts.evictions + counts.table_evictions));
    put("reclaimed", &since(|counts| counts.reclaimed));
    put("stall_kicks", &server.stall_kicks);
    put("hash_mismatches", &since(|counts| counts.hash_mismatches));
    put("eviction_age", &counts.last_eviction_age);
    put("leased_bytes", &all.leased);
    put("pinned_bytes", &all.pinned);
    put("quarantined_bytes", &all.quarantined);
    put("leases", &all.leases);
    put("pins", &all.pins);
    put("restored_items", &all.restored);
    put("draining", &flag(all.draining));
}

fn items(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    for class in shared.cache.class_stats(now).iter().filter(|class| class.items > 0) {
        let mut put = |name: &str, value: &dyn Display| {
            stat(out, format_args!("items:{}:{name}", class.class), value);
        };
        put("number", &class.items);
        put("age", &class.age);
        put("mem_requested", &class.content_bytes);
        put("evicted", &class.evicted);
        put("evicted_time", &class.evicted_idle);
        put("outofmemory", &class.out_of_memory);
        put("reclaimed", &class.reclaimed);
        put("evicted_unfetched", &class.evicted_unfetched);
    }
}

fn slabs(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    let classes = shared.cache.class_stats(now);
    for class in &classes {
        let mut put = |name: &str, value: &dyn Display| {
            stat(out, format_args!("{}:{name}", class.class), value);
        };
        put("chunk_size", &class.slot_bytes);
        put("chunks_per_page", &class.slots_per_slab);
        put("total_pages", &class.slabs);
        put("total_chunks", &(class.slabs * class.slots_per_slab));
        put("used_chunks", &class.used_slots);
        put("free_chunks", &class.free_slots);
        put("free_chunks_end", &0);
        put("mem_requested", &class.content_bytes);
    }
    let malloced: u64 =
        classes.iter().map(|class| class.slabs * class.slots_per_slab * class.slot_bytes).sum();
    stat(out, "active_slabs", classes.len());
    stat(out, "total_malloced", malloced);
}

fn settings(shared: &Shared, out: &mut Vec<u8>) {
    let (config, addresses) = (&shared.config, &shared.addresses);
    let first = addresses.tcp.first();
    let yes = |value: bool| if value { "yes" } else { "no" };
    let mut put = |name: &str, value: &dyn Display| stat(out, name, value);
    put("maxbytes", &shared.cache.counters().capacity);
    put("maxconns", &config.max_connections);
    put("tcpport", &first.map_or(0, std::net::SocketAddr::port));
    put("udpport", &0);
    put("inter", &first.map_or("NULL".to_owned(), |address| address.ip().to_string()));
    put("evictions", &"on");
    let unix = addresses.unix.as_ref().map(|path| path.display().to_string());
    put("domain_socket", &unix.unwrap_or("NULL".to_owned()));
    put("shutdown_command", &"no");
    put("num_threads", &config.threads);
    put("detail_enabled", &"no");
    put("cas_enabled", &"yes");
    put("auth_enabled_sasl", &"no");
    put("auth_enabled_ascii", &"no");
    put("item_size_max", &config.max_item_bytes);
    put("maxconns_fast", &"yes");
    put("lru_crawler", &"no");
    put("flush_enabled", &"yes");
    put("dump_enabled", &"no");
    put("hash_algorithm", &"blake3");
    put("idle_timeout", &config.idle_timeout.map_or(0, |timeout| timeout.as_secs()));
    put("track_sizes", &"no");
    put("ssl_enabled", &yes(config.tls.is_some()));
    let client = config.tls.as_ref().is_some_and(|tls| tls.client_authorities.is_some());
    put("ssl_client_certificates", &if client { "required" } else { "none" });
    put("stall_timeout", &config.stall_timeout.as_secs());
    put("drain_timeout", &config.drain_timeout.as_secs());
    put("node_name", &config.node_name);
    put("backing", &shared.cache.counters().backing);
}

fn connections(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    for connection in shared.connections.list() {
        let id = connection.id;
        stat(out, format_args!("{id}:addr"), &connection.peer);
        stat(out, format_args!("{id}:listen_addr"), &connection.local);
        stat(out, format_args!("{id}:state"), connection.state());
        stat(out, format_args!("{id}:secs_since_last_cmd"), connection.idle(now.monotonic));
    }
}

/// How the memory can be read from afar.
fn afar(shared: &Shared, out: &mut Vec<u8>) {
    stat(out, "announcement", shared.cache.announcement());
    if let Some(socket) = &shared.addresses.unix {
        stat(out, "socket", socket.display());
    }
    let Some(rdma) = &shared.rdma else {
        stat(out, "rdma", "none");
        return pushes(shared, out);
    };
    let Facts { device, gid, windows } = rdma.facts();
    let state = match rdma.is_ready() {
        Some(true) => "ready",
        Some(false) => "registering",
        None => "failed",
    };
    stat(out, "rdma", state);
    stat(out, "device", &device.name);
    stat(out, "gid", format_args!("{:032x}", u128::from_be_bytes(*gid)));
    stat(out, "windows", flag(*windows));
    stat(out, "window_bounds_enforced", flag(device.window_bounds_enforced()));
    stat(out, "queues", rdma.queues());
    stat(out, "max_queues", rdma.max_queues());
    pushes(shared, out);
}

/// How it can be written to.
fn pushes(shared: &Shared, out: &mut Vec<u8>) {
    let push = match &shared.push {
        Ok(push) => push,
        Err(why) => {
            stat(out, "push", "off");
            return stat(out, "push_reason", why);
        }
    };
    match push.is_ready() {
        Ok(true) => stat(out, "push", "ready"),
        Ok(false) => stat(out, "push", "registering"),
        Err(why) => {
            stat(out, "push", "failed");
            stat(out, "push_reason", why);
        }
    }
    stat(out, "push_max_chunks", MAX_PUSH_RECORDS);
    stat(out, "push_max_open", push.limits().pushes);
    stat(out, "push_max_exposed", push.limits().exposed);
    for (name, value) in push.counters().named() {
        stat(out, format_args!("push_{name}"), value);
    }
}

fn placement(shared: &Shared, out: &mut Vec<u8>) {
    let placement = shared.cache.placement();
    stat(out, "node_name", &shared.config.node_name);
    stat(out, "boot_id", format_args!("{:016x}", placement.boot_id));
    stat(out, "generation", placement.generation);
    stat(out, "capacity", placement.capacity);
    stat(out, "used", placement.used);
    stat(out, "leased", placement.leased);
    stat(out, "pinned", placement.pinned);
    stat(out, "quarantined", placement.quarantined);
    stat(out, "draining", flag(placement.draining));
}

fn leases(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    for lease in shared.cache.leases(now) {
        // Whoever knew the id itself could end the lease.
        let name = shared.lease_names.hash_one(lease.id) >> 32;
        let mut put = |field: &str, value: &dyn Display| {
            stat(out, format_args!("{name:08x}:{field}"), value);
        };
        put("owner", &lease.owner);
        put("age_ms", &lease.age.as_millis());
        put("remaining_ms", &lease.remaining.as_millis());
        put("items", &lease.items);
        put("bytes", &lease.bytes);
        put("renewals", &lease.renewals);
    }
}
