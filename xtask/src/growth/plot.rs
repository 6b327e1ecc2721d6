//! The plot of `growth`: rates, latencies and CPU time, over the number of keys and over the size of values.

use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::row::Row;

/// Width and height in pixels.
const SIZE: (u32, u32) = (1_100, 1_050);

/// Height of the line of text on top, in pixels.
const TITLE_HEIGHT: u32 = 40;

/// Maximum number of labels of an axis.
const LABELS_MAX: usize = 6;

/// Where the figure of a point stands, in pixels from it.
const TEXT_OFFSET: (i32, i32) = (6, -14);

/// A line of a chart.
struct Line {
    name: &'static str,
    color: RGBColor,
    of: fn(&Row) -> f64,
}

/// What a row of charts shows.
struct Quantity {
    title: &'static str,
    lines: &'static [Line],
}

const QUANTITIES: [Quantity; 3] = [
    Quantity { title: "writes per second", lines: &[Line { name: "", color: BLUE, of: |row| row.figures.rate }] },
    Quantity {
        title: "latency, ms",
        lines: &[
            Line { name: "p50", color: BLUE, of: |row| row.figures.p50_ms },
            Line { name: "p99", color: RED, of: |row| row.figures.p99_ms },
        ],
    },
    Quantity {
        title: "CPU of a write over all nodes, µs",
        lines: &[Line { name: "", color: BLUE, of: |row| row.figures.server_us() }],
    },
];

/// Rows along one axis.
pub(super) struct Series<'a> {
    name: &'a str,
    rows: Vec<&'a Row>,
    x: fn(&Row) -> f64,
}

impl<'a> Series<'a> {
    /// The rows in the order of `x`, which the axis `name` shows.
    pub(super) fn new(name: &'a str, rows: impl Iterator<Item = &'a Row>, x: fn(&Row) -> f64) -> Self {
        let mut rows: Vec<&Row> = rows.collect();
        rows.sort_by(|one, other| x(one).total_cmp(&x(other)));
        Self { name, rows, x }
    }
}

/// Draws the plot into an SVG file: a column of charts for each series, with logarithmic axes.
pub(super) fn draw(path: &Path, title: &str, series: &[Series<'_>]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let draw = || -> anyhow::Result<()> {
        root.fill(&WHITE)?;
        let (top, charts) = root.split_vertically(TITLE_HEIGHT);
        top.titled(title, ("sans-serif", 18))?;
        let areas = charts.split_evenly((QUANTITIES.len(), series.len()));
        let cells = QUANTITIES.iter().flat_map(|quantity| series.iter().map(move |series| (quantity, series)));
        for (area, (quantity, series)) in areas.iter().zip(cells) {
            chart(area, quantity, series)?;
        }
        root.present()?;
        Ok(())
    };
    draw().with_context(|| format!("{} cannot be drawn", path.display()))
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    Quantity { title, lines }: &Quantity,
    series: &Series<'_>,
) -> anyhow::Result<()> {
    let xs = range(series.rows.iter().map(|row| (series.x)(row)));
    let ys = range(series.rows.iter().flat_map(|row| lines.iter().map(|line| (line.of)(row))));
    let (Some(xs), Some(ys)) = (xs, ys) else { return Ok(()) };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    let label = |value: &f64| short(*value);
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(series.name).x_label_formatter(&label).y_label_formatter(&label);
    mesh.x_labels(LABELS_MAX).y_labels(LABELS_MAX).max_light_lines(0).draw()?;
    for Line { name, color, of } in lines.iter() {
        let points: Vec<(f64, f64)> = series.rows.iter().map(|row| ((series.x)(row), of(row))).collect();
        let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), color))?;
        if !name.is_empty() {
            drawn.label(*name).legend(|(x, y)| PathElement::new([(x, y), (x + 15, y)], *color));
        }
        // With the figures themselves, since logarithmic axes are hard to read.
        chart.draw_series(points.iter().map(|point| {
            let text = Text::new(short(point.1), TEXT_OFFSET, ("sans-serif", 12));
            EmptyElement::at(*point) + Circle::new((0, 0), 3, color.filled()) + text
        }))?;
    }
    if lines.len() > 1 {
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    }
    Ok(())
}

/// The range of an axis, in whole powers of ten, since only those get labels for sure.
fn range(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let powers: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
    let least = powers.iter().copied().reduce(f64::min)?.floor();
    let most = powers.iter().copied().reduce(f64::max)?.floor() + 1.0;
    Some(10_f64.powf(least)..10_f64.powf(most))
}

/// A number in few characters: `1.2k`, `10M`.
fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled < 10.0 { 1 } else { 0 };
    let text = format!("{scaled:.digits$}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::run;

    #[test]
    fn a_plot_has_the_figures_of_all_rows() {
        let row =
            |keys, rate| Row { keys, value_bytes: 256, fill_seconds: 1.0, disk_mib: 1.0, figures: run(rate, 9.0) };
        let rows = [row(20_000, 10_000.0), row(10_000_000, 7_500.0)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("growth.svg");
        let series = Series::new("keys", rows.iter(), |row| row.keys as f64);
        draw(&path, "growth", &[series]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for part in ["<svg", "growth", "writes per second", "p99", "7.5k", "10k"] {
            assert!(text.contains(part), "{part} is missing");
        }
        let empty = Series::new("keys", [].iter(), |_| 0.0);
        draw(&path, "growth", &[empty]).unwrap();
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.25, 3.0, 42.4, 1_234.0, 20_000.0, 10_000_000.0].map(short);
        assert_eq!(found, ["0.2", "3", "42", "1.2k", "20k", "10M"]);
    }
}
