//! What was measured: rows, and the figures of the thesis drawn from them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `scaling`, `chunks` or `baseline`.
    pub sweep: &'static str,
    /// What loaded: `vmm`, or the baseline's name.
    pub loader: &'static str,
    /// What served.
    pub server: &'static str,
    /// MiB of the ramdisk.
    pub megabytes: u32,
    /// Bytes per chunk.
    pub chunk_bytes: u32,
    /// Storage nodes.
    pub nodes: usize,
    /// Clients that started at once.
    pub clients: usize,
    /// Mean time to ready-to-boot over the clients, in seconds.
    pub mean_s: f64,
    /// The slowest client's, in seconds.
    pub max_s: f64,
    /// Bytes that all clients got per second of the whole, in units of all links together.
    pub link_share: f64,
}

/// Writes all rows as CSV and JSON, and the figures as SVG, into `folder`.
pub fn write(folder: &Path, rows: &[Row]) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("cache.json"), serde_json::to_string_pretty(rows).unwrap()).unwrap();
    let mut csv = std::fs::File::create(folder.join("cache.csv")).unwrap();
    writeln!(
        csv,
        "sweep,loader,server,megabytes,chunk_bytes,nodes,clients,mean_s,max_s,link_share"
    )
    .unwrap();
    for row in rows {
        writeln!(
            csv,
            "{},{},{},{},{},{},{},{:.4},{:.4},{:.4}",
            row.sweep,
            row.loader,
            row.server,
            row.megabytes,
            row.chunk_bytes,
            row.nodes,
            row.clients,
            row.mean_s,
            row.max_s,
            row.link_share
        )
        .unwrap();
    }
    for (file, megabytes) in [("figure-5.1.svg", 100), ("figure-5.2.svg", 300)] {
        let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.megabytes == megabytes && row.sweep != "chunks") {
            let name = match row.sweep {
                "scaling" => format!("{} nodes", row.nodes),
                _ => format!("{}, {} node", row.loader, row.nodes),
            };
            series.entry(name).or_default().push((count(row.clients), row.mean_s));
        }
        let title = format!("Clients against time to ready, {megabytes} MB images");
        draw(&folder.join(file), &title, "clients", &series);
    }
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.sweep == "chunks") {
        let name = format!("{} MB, {} clients, {} nodes", row.megabytes, row.clients, row.nodes);
        series.entry(name).or_default().push((f64::from(row.chunk_bytes >> 10).log2(), row.mean_s));
    }
    let title = "Chunk size against time to ready";
    draw(&folder.join("figure-5.4.svg"), title, "log2 of chunk size in KiB", &series);
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
fn count(n: usize) -> f64 {
    n as f64
}

fn draw(file: &Path, title: &str, axis: &str, series: &BTreeMap<String, Vec<(f64, f64)>>) {
    let points = || series.values().flatten();
    let Some(right) = points().map(|point| point.0).reduce(f64::max) else { return };
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.05;
    let root = SVGBackend::new(file, (900, 560)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..top)
        .unwrap();
    chart.configure_mesh().x_desc(axis).y_desc("seconds, mean over clients").draw().unwrap();
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let mut points = points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let marks =
            points.clone().into_iter().map(move |point| Circle::new(point, 3, colour.filled()));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(marks).unwrap();
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .unwrap();
    root.present().unwrap();
}
