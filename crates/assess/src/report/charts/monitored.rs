//! Charts of what members meet.

use plotters::prelude::*;

use super::super::{Chart, ReportError};
use super::{LINE, MAIN, SIZE, SOFT, Ticks, chart, columns, plane, told};

/// Most bins of a picture; the table beside it has all.
const MOST_BINS: usize = 32;
/// Most points of a line; the newest are shown.
const MOST_POINTS: usize = 120;

/// Two distributions over the same bins, side by side: each bin's name, its share in the baseline and in the window.
pub fn distribution_chart(signal: &str, bins: &[(String, f64, f64)]) -> Result<Chart, ReportError> {
    let shown = &bins[..bins.len().min(MOST_BINS)];
    let description = "Share of each bin in the baseline (grey) and in the window (blue), in the order of the table.";
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let rows = bins.iter().map(|(name, baseline, live)| vec![name.clone(), percent(*baseline), percent(*live)]);
    let table = (columns(["bin", "baseline", "live"]), rows.collect());
    chart(signal, description.to_owned(), SIZE, table, |area| {
        let most = shown.iter().flat_map(|(_, baseline, live)| [*baseline, *live]).fold(0.01, f64::max);
        let mut plot =
            plane(area, [0.0, shown.len().max(1) as f64], [0.0, 1.05 * most], ["bin", "share"], Ticks::MANY)?;
        let bar = |at: usize, from: f64, share: f64, colour: RGBColor| {
            let left = at as f64 + from;
            Rectangle::new([(left, 0.0), (left + 0.4, share)], colour.filled())
        };
        let bars = shown.iter().enumerate();
        let all = bars.flat_map(|(at, (_, baseline, live))| [bar(at, 0.1, *baseline, SOFT), bar(at, 0.5, *live, MAIN)]);
        plot.draw_series(all).map_err(told)?;
        Ok(())
    })
}

/// How far a signal was from its baseline over time: times and effects, oldest first, and the least effect that matters.
pub fn effect_chart(signal: &str, points: &[(String, f64)], matters: f64) -> Result<Chart, ReportError> {
    let shown = &points[points.len().saturating_sub(MOST_POINTS)..];
    let description =
        format!("Stability index of each hour or day, oldest first. From the dashed line, {matters}, on it matters.");
    let rows = points.iter().map(|(since, effect)| vec![since.clone(), format!("{effect:.3}")]);
    let table = (columns(["since", "effect"]), rows.collect());
    chart(&format!("{signal} over time"), description, SIZE, table, |area| {
        let most = shown.iter().map(|(_, effect)| *effect).fold(1.5 * matters, f64::max);
        let end = shown.len().max(2) as f64 - 1.0;
        let mut plot = plane(area, [0.0, end], [0.0, 1.05 * most], ["hours or days", "effect"], Ticks::MANY)?;
        plot.draw_series(DashedLineSeries::new([(0.0, matters), (end, matters)], 5, 5, LINE.into())).map_err(told)?;
        let line: Vec<(f64, f64)> = shown.iter().enumerate().map(|(at, (_, effect))| (at as f64, *effect)).collect();
        plot.draw_series(LineSeries::new(line.iter().copied(), MAIN.stroke_width(2))).map_err(told)?;
        plot.draw_series(line.iter().map(|&at| Circle::new(at, 3, MAIN.filled()))).map_err(told)?;
        Ok(())
    })
}
