//! What the kernel says of memory and load.

use std::fs;

/// Metrics of now, as far as the kernel tells them.
pub fn metrics() -> Vec<(&'static str, u64)> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let mut metrics = memory(&text("/proc/meminfo"));
    metrics.extend(load(&text("/proc/loadavg")));
    metrics.extend(uptime(&text("/proc/uptime")));
    metrics
}

/// Of lines as `MemTotal:  1000 kB`.
fn memory(text: &str) -> Vec<(&'static str, u64)> {
    let names = [("MemTotal:", "memory-total-bytes"), ("MemAvailable:", "memory-available-bytes")];
    let value = |word| {
        let line = text.lines().find_map(|line| line.strip_prefix(word))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    names.iter().filter_map(|(word, name)| Some((*name, value(word)?))).collect()
}

/// Of a line as `0.52 0.58 0.59 1/100 4321`: loads over 1, 5 and 15 minutes, in hundredths.
fn load(text: &str) -> Vec<(&'static str, u64)> {
    let names = ["load-1m-hundredths", "load-5m-hundredths", "load-15m-hundredths"];
    let words = text.split_ascii_whitespace();
    names
        .into_iter()
        .zip(words)
        .filter_map(|(name, word)| Some((name, hundredths(word)?)))
        .collect()
}

fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    let part = part.get(..2)?.parse::<u64>().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part)
}

/// Of a line as `350735.47 234388.90`.
fn uptime(text: &str) -> Option<(&'static str, u64)> {
    Some(("uptime-seconds", text.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_become_numbers() {
        let text = "MemTotal:     2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n";
        let expected = [("memory-total-bytes", 2048 << 10), ("memory-available-bytes", 1024 << 10)];
        assert_eq!(memory(text), expected);
        let loads = load("0.52 10.08 0.59 1/100 4321\n");
        assert_eq!(loads.iter().map(|(_, load)| *load).collect::<Vec<_>>(), [52, 1008, 59]);
        assert_eq!(uptime("350.47 2.90\n"), Some(("uptime-seconds", 350)));
        assert_eq!((memory("").len(), load("x y").len(), uptime("")), (0, 0, None));
    }

    #[test]
    fn there_are_some_here() {
        assert!(metrics().iter().any(|(name, value)| *name == "memory-total-bytes" && *value > 0));
    }
}
