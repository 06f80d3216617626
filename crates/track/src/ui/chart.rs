//! Line charts as SVG. Colours are classes, so that the page's light and dark styles hold inside the charts too.

use plotters::prelude::*;

const SIZE: (u32, u32) = (460, 220);
/// Most points drawn for one line.
const MAX_POINTS: usize = 600;
/// Stand-ins that `themed` turns into classes.
const AXIS: RGBColor = RGBColor(1, 1, 1);
const LABEL: RGBColor = RGBColor(2, 2, 2);
const GRID: RGBColor = RGBColor(3, 3, 3);
const N_COLOURS: usize = 8;

/// Lines over one pair of axes, each drawn in the colour of its position. Values that are not finite leave a gap in what
/// is known, not in the picture. Empty text if there is nothing to draw.
pub fn lines(lines: &[Vec<(f64, f64)>]) -> String {
    let lines: Vec<Vec<(f64, f64)>> = lines.iter().map(|line| thinned(line)).collect();
    let Some((x_range, y_range)) = ranges(&lines) else { return String::new() };
    let mut svg = String::new();
    match draw(&mut svg, &lines, x_range, y_range) {
        Ok(()) => themed(&svg),
        Err(error) => {
            tracing::warn!("A chart could not be drawn: {error}");
            String::new()
        }
    }
}

type Range = std::ops::Range<f64>;

fn draw(
    svg: &mut String,
    lines: &[Vec<(f64, f64)>],
    x_range: Range,
    y_range: Range,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let text = ("sans-serif", 14).into_font().color(&LABEL);
    let mut chart = ChartBuilder::on(&root)
        .margin(6)
        .margin_right(14)
        .x_label_area_size(24)
        .y_label_area_size(58)
        .build_cartesian_2d(x_range, y_range)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(text)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|x| super::number(*x))
        .y_label_formatter(&|y| super::number(*y))
        .draw()?;
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        let colour = series(n);
        chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
        if line.len() == 1 {
            chart.draw_series(line.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    root.present()?;
    Ok(())
}

fn series(n: usize) -> RGBColor {
    // Eight colours; more lines are not drawn.
    RGBColor(10, 10, u8::try_from(n % N_COLOURS).unwrap_or(0))
}

/// Finite points, at most [`MAX_POINTS`] of them, the last one always among them.
fn thinned(line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> =
        line.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite() && y.abs() < 1e300).collect();
    let every = finite.len().div_ceil(MAX_POINTS).max(1);
    let last = finite.len().saturating_sub(1);
    finite.iter().enumerate().filter(|(n, _)| n % every == 0 || *n == last).map(|(_, point)| *point).collect()
}

fn ranges(lines: &[Vec<(f64, f64)>]) -> Option<(Range, Range)> {
    let points = || lines.iter().flatten();
    points().next()?;
    let span = |pick: fn(&(f64, f64)) -> f64| {
        let low = points().map(pick).fold(f64::INFINITY, f64::min);
        let high = points().map(pick).fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    };
    let (x_low, x_high) = span(|point| point.0);
    let (y_low, y_high) = span(|point| point.1);
    let x_room = if x_low == x_high { 0.5 } else { 0.0 };
    let y_room = if y_low == y_high { y_low.abs().max(1.0) * 0.1 } else { (y_high - y_low) * 0.06 };
    Some((x_low - x_room..x_high + x_room, y_low - y_room..y_high + y_room))
}

/// The drawing with classes for colours, a size that follows the page, and no size of its own.
fn themed(svg: &str) -> String {
    let mut themed = svg.to_owned();
    for (colour, class) in [("#010101", "axis"), ("#020202", "label"), ("#030303", "grid")] {
        themed = swap(&themed, colour, class);
    }
    for n in 0..N_COLOURS {
        themed = swap(&themed, &format!("#0A0A{n:02X}"), &format!("s{}", n + 1));
    }
    let (width, height) = SIZE;
    themed.replacen(&format!("width=\"{width}\" height=\"{height}\""), "role=\"img\"", 1)
}

fn swap(svg: &str, colour: &str, class: &str) -> String {
    svg.replace(&format!("stroke=\"{colour}\""), &format!("class=\"{class}\""))
        .replace(&format!("fill=\"{colour}\""), &format!("class=\"{class}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_classes_and_odd_values_draw() {
        let svg = lines(&[vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.5)], vec![(0.0, f64::MAX)], vec![]]);
        assert!(svg.contains("class=\"s1\"") && svg.contains("viewBox") && !svg.contains("#0A0A"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
        assert_eq!(lines(&[vec![(0.0, f64::NAN)]]), "");
        assert!(!lines(&[vec![(3.0, 2.0)]]).is_empty());
    }

    #[test]
    fn a_long_line_is_thinned_and_keeps_its_end() {
        let line: Vec<_> = (0..10_001).map(|n| (f64::from(n), 1.0)).collect();
        let thin = thinned(&line);
        assert!(thin.len() <= MAX_POINTS + 1);
        assert_eq!(thin.last(), Some(&(10_000.0, 1.0)));
    }
}
